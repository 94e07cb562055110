//! Former names of renamed fields.
//! - A request may use either name. Both together are right when their values are equal.
//! - Null counts as absent.
//! - Answers carry both names.
//!
//! The code knows only the current names. A type of the table below derives its implementations of
//! serde with `remote = "Self"`, which makes them functions of the type. The table's macro wraps
//! these functions into the traits' implementations.

mod read;
mod write;

use crate::{
    Capsule, CreateCapsule, DailyUsage, Exec, Fork, Host, HostCredentials, HostLoad, HostSpecs,
    Limits, MakeLink, NewKey, Resume, SetTimeout, Snapshot, StreamRequest, TeamLimits, Template,
};
use read::EitherName;
use serde::de::{DeserializeOwned, Deserializer};
use serde::ser::Serializer;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use write::BothNames;

/// Former and current name of a field.
#[derive(Debug)]
pub struct Rename {
    pub former: &'static str,
    pub current: &'static str,
    /// Checks a value against the field's type.
    check: fn(&Value) -> Result<(), String>,
}

fn check<T: DeserializeOwned>(value: &Value) -> Result<(), String> {
    T::deserialize(value).map(drop).map_err(|error| error.to_string())
}

/// Returns the former name of a field. A name that is also a former name stays, since it may mean
/// either field.
#[must_use]
pub fn former_name(current: &str) -> Option<&'static str> {
    let renames = || RENAMED.iter().flat_map(|(_, renames)| *renames);
    let is_former = renames().any(|rename| rename.former == current);
    renames().find(|rename| rename.current == current && !is_former).map(|rename| rename.former)
}

macro_rules! renamed {
    (
        requests { $($request:ident { $($fields:tt)+ })+ }
        answers { $($answer:ident { $($answered:tt)+ })+ }
    ) => {
        $(
            renamed!(@read $request { $($fields)+ });
            impl Serialize for $request {
                fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                    $request::serialize(self, serializer)
                }
            }
        )+
        $(
            renamed!(@read $answer { $($answered)+ });
            impl Serialize for $answer {
                fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                    $answer::serialize(self, BothNames::new(serializer, $answer::RENAMES))
                }
            }
        )+
        /// Renamed fields of each type, by the name of its schema.
        pub const RENAMED: &[(&str, &[Rename])] = &[
            $((stringify!($request), $request::RENAMES),)+
            $((stringify!($answer), $answer::RENAMES),)+
        ];
    };
    (@read $name:ident { $($former:ident => $current:ident: $type:ty),+ }) => {
        impl $name {
            const RENAMES: &'static [Rename] = &[$(Rename {
                former: stringify!($former),
                current: stringify!($current),
                check: check::<$type>,
            }),+];
        }
        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                $name::deserialize(EitherName::new(deserializer, $name::RENAMES))
            }
        }
    };
}

// Types that are both a request and an answer stand among the answers.
renamed! {
    requests {
        CreateCapsule {
            memory_mb => memory_mib: u32,
            disk_mb => disk_mib: u32,
            timeout_sec => idle_timeout: u32,
            timeout => lifetime: u32
        }
        Resume { timeout => lifetime: u32 }
        Fork { timeout => lifetime: u32 }
        SetTimeout { timeout => lifetime: u32, timeout_sec => idle_timeout: u32 }
        Exec { timeout_sec => timeout: u32 }
        StreamRequest { timeout_sec => timeout: u32 }
        NewKey { expires_sec => expires_in: u64 }
        MakeLink { expires_sec => expires_in: u32 }
    }
    answers {
        Capsule {
            memory_mb => memory_mib: i32,
            disk_mb => disk_mib: i32,
            timeout_sec => idle_timeout: i32
        }
        Template { memory_mb => memory_mib: i32, disk_mb => disk_mib: i32 }
        Snapshot { memory_mb => memory_mib: i32, disk_mb => disk_mib: i32 }
        Limits { memory_mb => memory_mib: u64, storage_mb => storage_mib: u64 }
        TeamLimits { memory_mb => memory_mib: i64, storage_mb => storage_mib: i64 }
        DailyUsage {
            memory_mb_seconds => memory_mib_seconds: f64,
            storage_mb_seconds => storage_mib_seconds: f64
        }
        Host {
            memory_mb => memory_mib: i64,
            disk_mb => disk_mib: i64,
            used_memory_mb => used_memory_mib: i64,
            used_disk_mb => used_disk_mib: i64
        }
        HostLoad { free_memory_mb => free_memory_mib: u64, free_disk_mb => free_disk_mib: u64 }
        HostSpecs { memory_mb => memory_mib: u64, disk_mb => disk_mib: u64 }
        HostCredentials { renew_sec => renew_in: u64 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn create(body: &str) -> Result<CreateCapsule, String> {
        serde_json::from_str(body).map_err(|error| error.to_string())
    }

    #[test]
    fn request_is_read_by_former_name_current_name_and_equal_both() {
        for body in [
            r#"{"memory_mb":256,"timeout":60,"timeout_sec":9}"#,
            r#"{"memory_mib":256,"lifetime":60,"idle_timeout":9}"#,
            r#"{"memory_mb":256,"memory_mib":256,"lifetime":60,"timeout":60,"timeout_sec":9}"#,
        ] {
            let body = create(body).unwrap();
            assert_eq!((body.memory_mib, body.disk_mib), (Some(256), None));
            assert_eq!((body.lifetime, body.idle_timeout), (Some(60), Some(9)));
        }
    }

    #[test]
    fn null_counts_as_absent_under_either_name() {
        for body in [
            r#"{"memory_mb":null,"memory_mib":256}"#,
            r#"{"memory_mib":256,"memory_mb":null}"#,
            r#"{"memory_mib":null,"memory_mb":256}"#,
            r#"{"memory_mb":256,"memory_mib":null,"vcpus":null}"#,
        ] {
            assert_eq!(create(body).unwrap().memory_mib, Some(256), "{body}");
        }
        let none = create(r#"{"memory_mb":null,"memory_mib":null,"timeout":null}"#).unwrap();
        assert_eq!((none.memory_mib, none.lifetime), (None, None));
    }

    #[test]
    fn different_values_are_refused_by_the_current_name_in_either_order() {
        for body in
            [r#"{"timeout_sec":1,"idle_timeout":2}"#, r#"{"idle_timeout":0,"timeout_sec":2}"#]
        {
            let error = create(body).unwrap_err();
            assert!(error.starts_with("idle_timeout differs from timeout_sec"), "{error}");
        }
    }

    #[test]
    fn wrong_repeated_and_unknown_fields_are_refused() {
        for (body, part) in [
            (r#"{"memory_mb":"x"}"#, "invalid type: string \"x\", expected u32"),
            (r#"{"memory_mib":-1}"#, "invalid value: integer `-1`, expected u32"),
            (r#"{"memory_mb":4294967296}"#, "invalid value: integer `4294967296`, expected u32"),
            (r#"{"memory_mb":1,"memory_mb":1}"#, "duplicate field `memory_mb`"),
            (r#"{"memory_mb":null,"memory_mb":1}"#, "duplicate field `memory_mb`"),
            (r#"{"memory_gb":1}"#, "unknown field `memory_gb`"),
            ("7", "invalid type: integer `7`, expected struct CreateCapsule"),
        ] {
            let error = create(body).unwrap_err();
            assert!(error.starts_with(part), "{body}: {error}");
        }
    }

    #[test]
    fn fields_of_a_frame_and_of_nested_objects_are_read_by_either_name() {
        for name in ["timeout", "timeout_sec"] {
            let frame = json!({ "type": "start", "cmd": "true", name: 5 });
            let StreamRequest::Start { timeout, .. } = serde_json::from_value(frame).unwrap()
            else {
                panic!("it is a start")
            };
            assert_eq!(timeout, Some(5));
        }
        let end = serde_json::from_str::<StreamRequest>(r#"{"type":"close_stdin"}"#).unwrap();
        assert!(matches!(end, StreamRequest::CloseStdin));
        let key = json!({ "name": "k", "expires_sec": 7, "limits": { "memory_mb": 512 } });
        let key: NewKey = serde_json::from_value(key).unwrap();
        assert_eq!(key.expires_in, Some(7));
        assert_eq!(key.limits.unwrap().memory_mib, Some(512));
    }

    #[test]
    fn requests_carry_the_current_names_alone() {
        let body = CreateCapsule { lifetime: Some(3), ..CreateCapsule::default() };
        let body = serde_json::to_value(body).unwrap();
        assert_eq!(body["lifetime"], 3);
        assert!(body.get("timeout").is_none() && body.get("memory_mb").is_none(), "{body}");
        let frame = StreamRequest::Stdin { data: "eA==".to_owned() };
        assert_eq!(
            serde_json::to_value(frame).unwrap(),
            json!({ "type": "stdin", "data": "eA==" })
        );
    }

    #[test]
    fn answers_carry_both_names_and_are_read_again() {
        let load = HostLoad { free_memory_mib: 5, free_disk_mib: 6, cpu_load_percent: 7 };
        let both = json!({ "cpu_load_percent": 7, "free_memory_mib": 5, "free_memory_mb": 5,
            "free_disk_mib": 6, "free_disk_mb": 6 });
        assert_eq!(serde_json::to_value(&load).unwrap(), both);
        assert_eq!(serde_json::from_value::<HostLoad>(both).unwrap(), load);
        let former = json!({ "free_memory_mb": 5, "free_disk_mb": 6, "cpu_load_percent": 7 });
        assert_eq!(serde_json::from_value::<HostLoad>(former).unwrap(), load);
    }

    #[test]
    fn absent_field_of_an_answer_is_absent_under_both_names() {
        assert_eq!(serde_json::to_string(&Limits::default()).unwrap(), "{}");
        let limits = Limits { storage_mib: Some(1), ..Limits::default() };
        let text = serde_json::to_string(&limits).unwrap();
        assert_eq!(text, r#"{"storage_mib":1,"storage_mb":1}"#);
        assert_eq!(serde_json::from_str::<Limits>(&text).unwrap(), limits);
    }

    #[test]
    fn required_field_must_be_there_under_one_name() {
        let load = serde_json::from_value::<TeamLimits>(json!({ "limits": {}, "capsules": 0,
            "vcpus": 0, "snapshots": 0, "storage_mb": 0 }));
        assert!(load.unwrap_err().to_string().contains("missing field `memory_mib`"));
    }

    #[test]
    fn former_name_of_a_field_is_found_unless_ambiguous() {
        assert_eq!(former_name("lifetime"), Some("timeout"));
        assert_eq!(former_name("memory_mib"), Some("memory_mb"));
        for name in ["timeout", "timeout_sec", "vcpus"] {
            assert_eq!(former_name(name), None, "{name}");
        }
    }

    #[test]
    fn renames_of_each_type_are_distinct() {
        for (name, renames) in RENAMED {
            let mut names: Vec<_> = renames.iter().flat_map(|r| [r.former, r.current]).collect();
            names.sort_unstable();
            names.dedup();
            assert_eq!(names.len(), 2 * renames.len(), "{name}");
        }
    }
}
