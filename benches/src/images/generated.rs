//! The generated image: about 206 MB in 10,253 entries, which gzip packs into about 86 MB. A small
//! Debian with Python is as large, and packs into about 73 MB. Each run makes the same bytes.

use tests::{Image, Tree};

const FOLDERS: usize = 600;
const FILES: usize = 9400;
const LINKS: usize = 250;
/// Words that contents are made of. Fewer words pack better.
const WORDS: usize = 1024;
/// Words that are much more frequent than the others.
const FREQUENT: usize = 64;
const SEED: u64 = 88_172_645_463_325_252;

/// A source of numbers that only look random (Marsaglia's xorshift).
struct Numbers(u64);

impl Numbers {
    fn draw(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// Returns a number less than `end`.
    fn below(&mut self, end: usize) -> usize {
        usize::try_from((self.draw() >> 8) % end as u64).unwrap()
    }

    fn bytes(&mut self, length: usize) -> Vec<u8> {
        std::iter::repeat_with(|| self.draw().to_le_bytes()).flatten().take(length).collect()
    }
}

/// Returns the image of one layer.
pub(super) fn image() -> Image {
    let mut numbers = Numbers(SEED);
    let words: Vec<Vec<u8>> = (0..WORDS)
        .map(|_| {
            let length = 3 + numbers.below(9);
            numbers.bytes(length)
        })
        .collect();
    let mut tree = Tree::new().folder("usr", 0o755).folder("usr/lib", 0o755);
    tree = tree.folder("usr/share", 0o755);
    for folder in 0..FOLDERS {
        tree = tree.folder(&format!("usr/lib/package-{folder}"), 0o755);
    }
    for file in 0..FILES {
        let contents = contents(&mut numbers, &words);
        tree = tree.file(&path(file), 0o644, contents);
    }
    for link in 0..LINKS {
        let target = format!("../../{}", path(link * 7));
        tree = tree.link(&format!("usr/share/link-{link}"), &target);
    }
    Image::of(tree)
}

fn path(file: usize) -> String {
    format!("usr/lib/package-{}/file-{file}", file % FOLDERS)
}

/// Makes a file's contents: 256 bytes to 128 KiB. Small files are as frequent as large ones.
fn contents(numbers: &mut Numbers, words: &[Vec<u8>]) -> Vec<u8> {
    let least = 256 << numbers.below(9);
    let size = least + numbers.below(least);
    let mut contents = Vec::with_capacity(size + 32);
    while contents.len() < size {
        contents.extend(&words[numbers.below(WORDS)]);
        if numbers.below(4) == 0 {
            contents.extend(&words[numbers.below(FREQUENT)]);
        }
    }
    contents.truncate(size);
    contents
}
