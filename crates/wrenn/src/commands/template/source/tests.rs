//! Dockerfiles and contexts in folders of the tests. Nothing is uploaded.

use super::*;

struct Folder(tempfile::TempDir);

impl Folder {
    fn new(files: &[(&str, &str)]) -> Self {
        let folder = Self(tempfile::tempdir().unwrap());
        for (name, text) in files {
            let path = folder.0.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        folder
    }

    fn read(&self) -> anyhow::Result<Source> {
        self.read_with(|_| {})
    }

    fn read_with(&self, change: impl FnOnce(&mut cli::BuildFrom)) -> anyhow::Result<Source> {
        let mut from =
            cli::BuildFrom { dir: Some(self.0.path().to_owned()), ..cli::BuildFrom::default() };
        change(&mut from);
        read(from)
    }
}

fn names(upload: &Upload) -> Vec<&str> {
    match &upload.contents {
        Contents::Files { selection, .. } => {
            selection.entries().iter().map(|entry| entry.path.as_str()).collect()
        }
        Contents::File { .. } => panic!("not files"),
    }
}

fn text(error: &anyhow::Error) -> String {
    format!("{error:#}")
}

#[test]
fn recipe_of_the_executable_begins_from_a_template() {
    let folder = Folder::new(&[("recipe/Dockerfile", "FROM base\nCOPY a /\n"), ("a", "a")]);
    let dir = folder.0.path();
    let source = read_builtin(dir.to_owned(), dir.join("recipe/Dockerfile")).unwrap();
    let stages = source.recipe.unwrap().stages;
    assert_eq!(stages[0].source, recipe::Source::Template("base".to_owned()));
    assert_eq!(names(&source.uploads[0]), ["a"]);
}

#[test]
fn each_copy_names_the_hash_of_its_own_files() {
    let folder = Folder::new(&[
        ("Dockerfile", "FROM debian\nARG DIR=src\nCOPY $DIR /a/\nRUN make\nCOPY a.txt a.txt /\n"),
        ("src/x.c", "x"),
        ("src/x.o", "o"),
        ("a.txt", "a"),
        (".dockerignore", "**/*.o\n"),
    ]);
    let source = folder.read().unwrap();
    assert_eq!(source.uploads.len(), 2);
    assert_eq!(names(&source.uploads[0]), ["src", "src/x.c"]);
    assert_eq!(names(&source.uploads[1]), ["a.txt"]);
    let recipe = source.recipe.unwrap();
    let hashes =
        recipe.stages[0].steps.iter().filter_map(|step| step.action.as_copy()?.files.clone());
    let uploads: Vec<_> = source.uploads.iter().map(|upload| upload.hash.clone()).collect();
    assert_eq!(hashes.collect::<Vec<_>>(), uploads);
}

#[test]
fn faults_of_a_dockerfile_name_file_and_line() {
    let folder = Folder::new(&[("Dockerfile", "FROM debian\n\nFLY x\n")]);
    let error = text(&folder.read().err().unwrap());
    assert!(error.contains("Dockerfile: line 3: FLY"), "{error}");
    let folder = Folder::new(&[("Dockerfile", "FROM debian\nCOPY missing /\n")]);
    let error = text(&folder.read().err().unwrap());
    assert!(error.contains("line 2: COPY") && error.contains("missing"), "{error}");
    let folder = Folder::new(&[
        ("Dockerfile", "FROM debian\nCOPY a /\n"),
        ("a", ""),
        (".dockerignore", "a"),
    ]);
    let error = text(&folder.read().err().unwrap());
    assert!(error.contains(".dockerignore leaves out"), "{error}");
    let error = text(&Folder::new(&[]).read().err().unwrap());
    assert!(error.contains("--file") && error.contains("--image"), "{error}");
}

#[test]
fn unknown_build_argument_is_a_warning() {
    let folder = Folder::new(&[("Dockerfile", "FROM debian\n")]);
    let args = |from: &mut cli::BuildFrom| from.args = vec![("X".to_owned(), "1".to_owned())];
    let source = folder.read_with(args).unwrap();
    assert!(source.notes[0].contains("argument X"), "{:?}", source.notes);
}

#[test]
fn own_ignore_file_takes_precedence_over_the_folders() {
    let folder = Folder::new(&[
        ("Dockerfile", "FROM debian\nCOPY d /d/\n"),
        ("Dockerfile.dockerignore", "d/a\n"),
        (".dockerignore", "d/b\n"),
        ("d/a", ""),
        ("d/b", ""),
    ]);
    assert_eq!(names(&folder.read().unwrap().uploads[0]), ["d", "d/b"]);
}

#[test]
fn file_that_changes_after_its_hash_is_not_sent() {
    let folder = Folder::new(&[("Dockerfile", "FROM debian\nCOPY a /\n"), ("a", "one")]);
    let source = folder.read().unwrap();
    source.uploads[0].contents.write(&mut Vec::new()).unwrap();
    fs::write(folder.0.path().join("a"), "longer").unwrap();
    assert!(source.uploads[0].contents.write(&mut Vec::new()).is_err());
}

#[test]
fn archive_of_an_image_is_named_by_its_hash() {
    let folder = Folder::new(&[("image.tar", "abc")]);
    let path = folder.0.path().join("image.tar");
    let image = |prefix: &str| Some(format!("{prefix}{}", path.display()));
    let source = folder.read_with(|from| from.image = image("oci-archive:")).unwrap();
    let hash = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
    assert_eq!(source.from, Some(api::BuildSource::Archive(hash.to_owned())));
    let mut sent = Vec::new();
    source.uploads[0].contents.write(&mut sent).unwrap();
    assert_eq!(sent, b"abc");
    assert!(folder.read_with(|from| from.image = Some("docker-archive:/".to_owned())).is_err());
    let source = folder.read_with(|from| from.image = Some("debian".to_owned())).unwrap();
    assert_eq!(source.from, Some(api::BuildSource::Image("debian".to_owned())));
}
