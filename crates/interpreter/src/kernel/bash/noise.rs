//! Messages of an interactive bash that has no terminal. They say nothing about the user's code.

const NOISE: &str = "] tcsetattr: Inappropriate ioctl for device\n";

/// Returns the name by which a shell calls itself: the last part of its path.
pub(super) fn shell_name(command: Option<&String>) -> String {
    let command = command.map_or("bash", String::as_str);
    command.rsplit('/').next().unwrap_or(command).to_owned()
}

/// Removes messages about the missing terminal, such as `bash: [12: 2 (255)] tcsetattr: …`. The
/// shell writes each whole, whenever a signal has ended a program.
pub(super) fn remove(shell: &str, text: String) -> String {
    if !text.contains(NOISE) {
        return text;
    }
    let start = format!("{shell}: [");
    let mut clean = String::with_capacity(text.len());
    let mut rest = text.as_str();
    while let Some(at) = rest.find(NOISE) {
        let end = at + NOISE.len();
        let begin = rest[..at].rfind(&start).filter(|begin| {
            rest[begin + start.len()..at].chars().all(|c| c.is_ascii_digit() || " :()".contains(c))
        });
        clean.push_str(&rest[..begin.unwrap_or(end)]);
        rest = &rest[end..];
    }
    clean + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn message_about_the_terminal_is_removed_and_nothing_else() {
        let noise = "bash: [1712: 2 (255)] tcsetattr: Inappropriate ioctl for device\n";
        let other = noise.replace("1712", "x");
        for (text, clean) in [
            (format!("a\n{noise}b"), "a\nb"),
            (format!("half{noise}{noise}"), "half"),
            (other.clone(), other.as_str()),
            ("plain".to_owned(), "plain"),
        ] {
            assert_eq!(remove("bash", text), clean);
        }
    }

    #[test]
    fn shell_calls_itself_by_the_last_part_of_its_path() {
        assert_eq!(shell_name(Some(&"/bin/bash".to_owned())), "bash");
        assert_eq!(shell_name(None), "bash");
    }
}
