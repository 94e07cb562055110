//! Arguments of `wrenn code`, and facts about the terminal that it writes to.

use super::template;
use clap::Args;

/// Arguments of `wrenn code`.
#[derive(Args, Debug)]
pub(crate) struct Code {
    /// Id of a capsule, a file with code, or both in this order. Without a capsule, a new one runs
    /// the code and is removed at the end. Without code on a terminal, a REPL begins; otherwise
    /// standard input is the code.
    #[arg(value_name = "CAPSULE|FILE", num_args = 0..=2)]
    pub words: Vec<String>,
    /// Code to run.
    #[arg(short = 'c', value_name = "CODE")]
    pub code: Option<String>,
    /// Language, such as python, javascript, typescript or bash. Default: by the file's name, else
    /// python.
    #[arg(long, short)]
    pub language: Option<String>,
    /// Id of the context that runs the code. Default: the language's default context.
    #[arg(long, value_name = "ID", conflicts_with = "language")]
    pub context: Option<String>,
    /// NAME=VALUE in the environment of this code. NAME alone takes the value from this command's
    /// environment. Repeatable.
    #[arg(long = "env", short, value_parser = template::variable, value_name = "NAME[=VALUE]")]
    pub envs: Vec<(String, String)>,
    /// Time until an execution is interrupted, such as `500ms`, `90s` or `30m`. Unlimited by
    /// default.
    #[arg(long)]
    pub timeout: Option<humantime::Duration>,
    /// Template of the new capsule.
    #[arg(long, value_name = "NAME[:TAG]", default_value = "code-interpreter")]
    pub template: String,
    /// Keep the new capsule, and print its id on standard error.
    #[arg(long)]
    pub keep: bool,
    /// Attach to an execution that is under way or has ended within ten minutes.
    #[arg(long, value_name = "EXECUTION", conflicts_with_all = ["code", "language", "context"])]
    pub attach: Option<String>,
}

/// Way in which a terminal shows pictures.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pictures {
    /// Protocol of kitty, for PNG.
    Kitty,
    /// Protocol of iTerm2, for PNG and JPEG.
    Iterm,
}

/// Finds the way in which our terminal shows pictures. Terminals tell their names in variables.
pub(crate) fn pictures() -> Option<Pictures> {
    pictures_by(|name| std::env::var(name).ok().filter(|value| !value.is_empty()))
}

/// Finds the way by variables. Pure but for `var`.
fn pictures_by(var: impl Fn(&str) -> Option<String>) -> Option<Pictures> {
    let (term, program) = (var("TERM").unwrap_or_default(), var("TERM_PROGRAM"));
    // A multiplexer draws the screen itself, and would show the picture's bytes as text.
    if var("TMUX").is_some() || ["tmux", "screen"].iter().any(|name| term.starts_with(name)) {
        return None;
    }
    let is = |name: &str| program.as_deref() == Some(name);
    if term.contains("kitty") || var("KITTY_WINDOW_ID").is_some() {
        return Some(Pictures::Kitty);
    }
    if term.contains("ghostty") || is("ghostty") {
        return Some(Pictures::Kitty);
    }
    let iterm =
        is("iTerm.app") || is("WezTerm") || var("LC_TERMINAL").is_some_and(|t| t == "iTerm2");
    iterm.then_some(Pictures::Iterm)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn terminal_with_pictures_is_found_by_its_variables() {
        let found = |set: &[(&str, &str)]| {
            let value = |name: &str| set.iter().find(|(key, _)| *key == name);
            pictures_by(|name| value(name).map(|(_, value)| (*value).to_owned()))
        };
        assert_eq!(found(&[]), None);
        assert_eq!(found(&[("TERM", "xterm-256color")]), None);
        assert_eq!(found(&[("TERM", "xterm-kitty")]), Some(Pictures::Kitty));
        assert_eq!(found(&[("TERM_PROGRAM", "ghostty")]), Some(Pictures::Kitty));
        assert_eq!(found(&[("TERM_PROGRAM", "WezTerm")]), Some(Pictures::Iterm));
        assert_eq!(found(&[("LC_TERMINAL", "iTerm2")]), Some(Pictures::Iterm));
        assert_eq!(found(&[("TERM_PROGRAM", "iTerm.app"), ("TERM", "screen-256color")]), None);
        assert_eq!(found(&[("KITTY_WINDOW_ID", "1"), ("TMUX", "/tmp/x")]), None);
    }
}
