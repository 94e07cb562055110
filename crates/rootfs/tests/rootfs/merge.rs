//! The rules by which layers are merged, as a table. `oracles.rs` gives the same table to umoci.

use crate::archive::{Spec, file, folder, hard, link};
use crate::{describe, tree};

/// A case: its name, its layers, and the tree that they make. `umoci` is false where another
/// result is meant.
pub(crate) struct Case {
    pub name: &'static str,
    pub layers: Vec<Vec<Spec>>,
    pub tree: &'static str,
    pub umoci: bool,
}

fn case(name: &'static str, layers: Vec<Vec<Spec>>, tree: &'static str) -> Case {
    Case { name, layers, tree, umoci: true }
}

/// A case that umoci takes otherwise.
fn ours(name: &'static str, layers: Vec<Vec<Spec>>, tree: &'static str) -> Case {
    Case { umoci: false, ..case(name, layers, tree) }
}

/// Returns a whiteout.
fn hide(path: &str) -> Spec {
    file(path, "")
}

pub(crate) fn cases() -> Vec<Case> {
    let mut cases = whiteouts();
    cases.extend(replacements());
    cases.extend(links());
    cases.extend(hard_links());
    cases.extend(attributes());
    cases
}

fn whiteouts() -> Vec<Case> {
    let lower = || vec![folder("a"), file("a/x", "1"), file("a/y", "2"), file("b", "3")];
    vec![
        case("whiteout_hides_a_file", vec![lower(), vec![hide(".wh.b")]], "a/ a/x=1 a/y=2"),
        case("whiteout_hides_a_folder", vec![lower(), vec![hide(".wh.a")]], "b=3"),
        case("whiteout_below_a_folder", vec![lower(), vec![hide("a/.wh.x")]], "a/ a/y=2 b=3"),
        ours(
            "whiteout_as_a_hard_link_hides",
            vec![lower(), vec![hard(".wh.b", "a/x")]],
            "a/ a/x=1 a/y=2",
        ),
        case(
            "whiteout_with_contents_hides",
            vec![lower(), vec![file(".wh.b", "text")]],
            "a/ a/x=1 a/y=2",
        ),
        ours(
            "whiteout_of_a_name_of_its_own_layer_hides_the_lower_one_alone",
            vec![lower(), vec![file("b", "new"), hide(".wh.b")]],
            "a/ a/x=1 a/y=2 b=new",
        ),
        case(
            "whiteout_before_the_new_entry",
            vec![lower(), vec![hide(".wh.b"), file("b", "new")]],
            "a/ a/x=1 a/y=2 b=new",
        ),
        ours(
            "whiteout_of_a_merged_folder_keeps_its_own_entries",
            vec![lower(), vec![folder("a"), file("a/n", "4"), hide(".wh.a")]],
            "a/ a/n=4 b=3",
        ),
        case("whiteout_of_nothing", vec![lower(), vec![hide(".wh.c")]], "a/ a/x=1 a/y=2 b=3"),
        case("whiteout_below_nothing", vec![vec![file("b", "3")], vec![hide("c/d/.wh.e")]], "b=3"),
        case("whiteout_in_the_lowest_layer", vec![vec![hide(".wh.x"), file("b", "3")]], "b=3"),
        case(
            "hidden_name_comes_back_in_a_third_layer",
            vec![lower(), vec![hide(".wh.a")], vec![folder("a"), file("a/z", "5")]],
            "a/ a/z=5 b=3",
        ),
        case(
            "opaque_folder_hides_lower_names",
            vec![lower(), vec![folder("a"), hide("a/.wh..wh..opq"), file("a/z", "5")]],
            "a/ a/z=5 b=3",
        ),
        case(
            "opaque_mark_after_the_entries",
            vec![lower(), vec![folder("a"), file("a/z", "5"), hide("a/.wh..wh..opq")]],
            "a/ a/z=5 b=3",
        ),
        case("opaque_root", vec![lower(), vec![hide(".wh..wh..opq"), file("c", "6")]], "c=6"),
        ours(
            "aufs_files_are_ignored",
            vec![vec![file("b", "3"), file(".wh..wh.aufs", ""), file(".wh..wh.plnk/1", "x")]],
            "b=3",
        ),
        case(
            "whiteout_passes_a_link_of_the_lower_tree",
            vec![
                vec![
                    folder("usr"),
                    folder("usr/bin"),
                    file("usr/bin/sh", ""),
                    link("bin", "usr/bin"),
                ],
                vec![hide("bin/.wh.sh")],
            ],
            "bin->usr/bin usr/ usr/bin/",
        ),
        case(
            "opaque_folder_in_place_of_a_link_spares_the_target",
            vec![
                vec![folder("b"), file("b/x", "1"), link("a", "b")],
                vec![folder("a"), hide("a/.wh..wh..opq"), file("a/y", "2")],
            ],
            "a/ a/y=2 b/ b/x=1",
        ),
    ]
}

fn replacements() -> Vec<Case> {
    vec![
        case("file_over_file", vec![vec![file("a", "1")], vec![file("a", "22")]], "a=22"),
        case("file_twice_in_one_layer", vec![vec![file("a", "1"), file("a", "22")]], "a=22"),
        case(
            "file_over_folder",
            vec![vec![folder("a"), folder("a/b"), file("a/b/c", "1")], vec![file("a", "2")]],
            "a=2",
        ),
        case(
            "folder_over_file",
            vec![vec![file("a", "1")], vec![folder("a"), file("a/b", "2")]],
            "a/ a/b=2",
        ),
        case(
            "folder_over_folder_merges",
            vec![
                vec![folder("a"), file("a/x", "1")],
                vec![folder("a").mode(0o700).owner(7, 8), file("a/y", "2")],
            ],
            "a/:700@7:8 a/x=1 a/y=2",
        ),
        case(
            "folder_after_its_entries",
            vec![vec![file("a/x", "1"), folder("a").mode(0o711)]],
            "a/:711 a/x=1",
        ),
        case("parents_are_made", vec![vec![file("a/b/c", "1")]], "a/ a/b/ a/b/c=1"),
        case("link_over_folder", vec![vec![file("a/b", "1")], vec![link("a", "x")]], "a->x"),
        case(
            "folder_over_link",
            vec![vec![file("b/x", "1"), link("a", "b")], vec![folder("a")]],
            "a/ b/ b/x=1",
        ),
        case(
            "file_over_link_leaves_the_target",
            vec![vec![file("t", "1"), link("a", "t")], vec![file("a", "2")]],
            "a=2 t=1",
        ),
        case("empty_layer", vec![vec![file("a", "1")], vec![]], "a=1"),
        case("no_entries", vec![vec![]], ""),
    ]
}

fn links() -> Vec<Case> {
    let usr = || vec![folder("usr"), folder("usr/bin"), link("bin", "usr/bin")];
    vec![
        case(
            "parent_is_a_link",
            vec![usr(), vec![file("bin/sh", "1")]],
            "bin->usr/bin usr/ usr/bin/ usr/bin/sh=1",
        ),
        case(
            "parent_is_an_absolute_link",
            vec![vec![folder("usr"), link("bin", "/usr")], vec![file("bin/sh", "1")]],
            "bin->/usr usr/ usr/sh=1",
        ),
        case(
            "parent_is_a_link_that_leaves_the_root",
            vec![vec![link("a", "../../../b")], vec![file("a/x", "1")]],
            "a->../../../b b/ b/x=1",
        ),
        case(
            "parent_is_a_link_of_its_own_layer",
            vec![vec![folder("b"), link("a", "b"), file("a/x", "1")]],
            "a->b b/ b/x=1",
        ),
        case(
            "parent_is_a_dangling_link",
            vec![vec![link("a", "b/c"), file("a/x", "1")]],
            "a->b/c b/ b/c/ b/c/x=1",
        ),
        case(
            "parents_are_a_chain_of_links",
            vec![vec![link("a", "b"), link("b", "/c/./d"), file("a/x", "1")]],
            "a->b b->/c/./d c/ c/d/ c/d/x=1",
        ),
        case(
            "link_text_is_kept",
            vec![vec![link("a", "../../etc//passwd")]],
            "a->../../etc//passwd",
        ),
        case("link_to_itself_is_kept", vec![vec![link("a", "a")]], "a->a"),
    ]
}

fn hard_links() -> Vec<Case> {
    vec![
        case("hard_link", vec![vec![file("a", "1"), hard("b", "a")]], "a=1*2 b=1*2"),
        case(
            "hard_link_to_a_lower_layer",
            vec![vec![file("a", "1")], vec![hard("b", "a")]],
            "a=1*2 b=1*2",
        ),
        ours(
            "hard_link_before_its_target",
            vec![vec![hard("b", "a"), file("a", "1")]],
            "a=1*2 b=1*2",
        ),
        ours(
            "hard_links_before_each_other",
            vec![vec![hard("c", "b"), hard("b", "a"), file("a", "1")]],
            "a=1*3 b=1*3 c=1*3",
        ),
        case(
            "hard_link_replaces_a_file",
            vec![vec![file("a", "1"), file("b", "2")], vec![hard("b", "a")]],
            "a=1*2 b=1*2",
        ),
        case(
            "hard_link_replaces_a_folder",
            vec![vec![file("a", "1"), file("b/c", "2")], vec![hard("b", "a")]],
            "a=1*2 b=1*2",
        ),
        case(
            "new_file_leaves_the_other_name",
            vec![vec![file("a", "1"), hard("b", "a")], vec![file("a", "2")]],
            "a=2 b=1",
        ),
        case(
            "whiteout_leaves_the_other_name",
            vec![vec![file("a", "1"), hard("b", "a")], vec![hide(".wh.a")]],
            "b=1",
        ),
        case(
            "hard_link_to_a_symbolic_link",
            vec![vec![link("a", "x"), hard("b", "a")]],
            "a->x*2 b->x*2",
        ),
        case(
            "hard_link_through_a_link",
            vec![vec![file("d/a", "1"), link("e", "d"), hard("b", "e/a")]],
            "b=1*2 d/ d/a=1*2 e->d",
        ),
        case("hard_link_with_slash", vec![vec![file("a", "1"), hard("b", "/a")]], "a=1*2 b=1*2"),
        ours("hard_link_to_itself", vec![vec![file("a", "1"), hard("a", "a")]], "a=1"),
    ]
}

fn attributes() -> Vec<Case> {
    vec![
        case("setuid_is_kept", vec![vec![file("a", "").mode(0o4755)]], "a=:4755"),
        case("sticky_folder", vec![vec![folder("tmp").mode(0o1777)]], "tmp/:1777"),
        case(
            "large_owners",
            vec![vec![file("a", "").owner(4_294_967_294, 100_000)]],
            "a=@4294967294:100000",
        ),
        case("fifo", vec![vec![Spec::new(b'6', "a", 0o644)]], "a|"),
        case(
            "devices",
            vec![vec![
                Spec::new(b'3', "c", 0o644).device(5, 300),
                Spec::new(b'4', "b", 0o644).device(259, 0xf_ffff),
                Spec::new(b'4', "z", 0o644),
            ]],
            "b b259:1048575 c c5:300 z b0:0",
        ),
        ours(
            "contents_of_dev_proc_sys_are_dropped",
            vec![vec![
                folder("dev").mode(0o700),
                Spec::new(b'3', "dev/null", 0o666).device(1, 3),
                file("proc/x/y", "1"),
                link("d", "dev"),
                file("d/z", "2"),
                file("sys/a", "3"),
                file("dev2/a", "4"),
                file("a/dev/b", "5"),
                file(".dockerenv", ""),
            ]],
            "a/ a/dev/ a/dev/b=5 d->dev dev/:700 dev2/ dev2/a=4 proc/ sys/",
        ),
        case("names_are_bytes", vec![vec![file(b"\xff\xfe", "1")]], "\\xff\\xfe=1"),
        case("slashes_are_cleaned", vec![vec![file("/./a//b", "1")]], "a/ a/b=1"),
        case("root_has_attributes", vec![vec![folder("./").mode(0o700)]], ""),
    ]
}

#[test]
fn layers_merge_by_the_rules() {
    let mut wrong = Vec::new();
    for case in cases() {
        let result = tree(&case.layers);
        let text = match &result {
            Ok(tree) => describe(tree),
            Err(error) => error.to_string(),
        };
        if text != case.tree {
            wrong.push(format!("{}:\n  is     {text}\n  should {}", case.name, case.tree));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn root_has_the_newest_attributes() {
    let layers = [vec![folder("./").mode(0o700)], vec![folder("/").mode(0o711).owner(1, 2)]];
    let tree = tree(&layers).unwrap();
    let root = &tree[&b""[..]];
    assert_eq!((root.mode, root.uid, root.gid), (0o40711, 1, 2));
}
