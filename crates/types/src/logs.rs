//! Output of a capsule that its log keeps.

use crate::text_enum;

/// Output of a capsule that its log keeps. Each policy keeps more than those before it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum LogPolicy {
    /// Nothing.
    None,
    /// The console, state changes of the capsule, and output of start commands and background
    /// processes.
    #[default]
    Background,
    /// Output of foreground commands, too.
    All,
}

text_enum!(LogPolicy, "logs", { None = "none", Background = "background", All = "all" });

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policies_round_trip_and_another_text_is_refused() {
        for policy in LogPolicy::ALL {
            assert_eq!(policy.to_string().parse(), Ok(policy));
        }
        let refused = "some".parse::<LogPolicy>().unwrap_err();
        assert_eq!(refused.to_string(), "logs must be none, background or all");
    }
}
