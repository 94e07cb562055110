//! Lists the files of the built-in recipes, `images/code-interpreter`, so that the executable holds
//! them. The list is an expression of `(path, bytes)` pairs, in the order of the paths.

use std::error::Error;
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

/// Names of folders that no template needs.
const LEFT_OUT: [&str; 3] = ["tests", "__pycache__", "node_modules"];

fn main() -> Result<(), Box<dyn Error>> {
    let images = PathBuf::from(std::env::var("CARGO_MANIFEST_DIR")?).join("../../images");
    let images = images.canonicalize()?;
    let recipe = images.join("code-interpreter");
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed={}", recipe.display());
    println!("cargo:rerun-if-changed={}", images.join("base/packages").display());
    let mut files = Vec::new();
    collect(&recipe, &mut files)?;
    let mut pairs = vec![("base.packages".to_owned(), images.join("base/packages"))];
    for file in files {
        let name = file.strip_prefix(&recipe)?.to_str().ok_or("a name is not UTF-8")?;
        pairs.push((name.to_owned(), file.clone()));
    }
    pairs.sort();
    let mut list = "&[\n".to_owned();
    for (name, path) in pairs {
        let path = path.to_str().ok_or("a path is not UTF-8")?;
        writeln!(list, "({name:?}, include_bytes!({path:?}) as &[u8]),")?;
    }
    list.push(']');
    Ok(fs::write(PathBuf::from(std::env::var("OUT_DIR")?).join("recipe.rs"), list)?)
}

/// Collects the files below a folder.
fn collect(dir: &Path, out: &mut Vec<PathBuf>) -> Result<(), Box<dyn Error>> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        let name = name.to_str().ok_or("a name is not UTF-8")?;
        if name.starts_with('.') || LEFT_OUT.contains(&name) {
            continue;
        }
        match entry.file_type()?.is_dir() {
            true => collect(&entry.path(), out)?,
            false => out.push(entry.path()),
        }
    }
    Ok(())
}
