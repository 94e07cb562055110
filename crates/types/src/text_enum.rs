//! Names of closed sets. A closed set has the same names on the wire and in the database. A text
//! outside the set is an error, never another member.

use crate::resources::OutOfRange;

/// Joins names for people, as `a, b or c`.
fn list(names: &[&str]) -> String {
    match names {
        [] => String::new(),
        [only] => (*only).to_owned(),
        [first @ .., last] => format!("{} or {last}", first.join(", ")),
    }
}

/// Makes the error for a text that is outside a closed set.
#[doc(hidden)]
#[must_use]
pub fn unknown(field: &'static str, names: &[&str]) -> OutOfRange {
    OutOfRange { field, message: format!("must be {}", list(names)) }
}

/// Gives each variant of an enum its name. Implements `ALL`, `as_str`, `Display`, `FromStr` and
/// serde. With the feature `sqlx`, it also implements the traits of a text column.
///
/// The second argument is the name of the field in the error for an unknown name.
#[macro_export]
macro_rules! text_enum {
    ($name:ident, $field:literal, { $($variant:ident = $text:literal),+ $(,)? }) => {
        impl $name {
            /// Every member of the set, in its order.
            pub const ALL: [Self; { [$($text),+].len() }] = [$(Self::$variant),+];

            /// Returns the name on the wire and in the database.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $text),+
                }
            }
        }

        impl ::std::fmt::Display for $name {
            fn fmt(&self, f: &mut ::std::fmt::Formatter<'_>) -> ::std::fmt::Result {
                f.write_str(self.as_str())
            }
        }

        impl ::std::str::FromStr for $name {
            type Err = $crate::resources::OutOfRange;

            fn from_str(text: &str) -> ::std::result::Result<Self, Self::Err> {
                match text {
                    $($text => Ok(Self::$variant),)+
                    _ => Err($crate::text_enum::unknown($field, &[$($text),+])),
                }
            }
        }

        impl $crate::export::serde::Serialize for $name {
            fn serialize<S: $crate::export::serde::Serializer>(
                &self,
                serializer: S,
            ) -> ::std::result::Result<S::Ok, S::Error> {
                serializer.serialize_str(self.as_str())
            }
        }

        impl<'de> $crate::export::serde::Deserialize<'de> for $name {
            fn deserialize<D: $crate::export::serde::Deserializer<'de>>(
                deserializer: D,
            ) -> ::std::result::Result<Self, D::Error> {
                let text = <::std::borrow::Cow<'de, str> as
                    $crate::export::serde::Deserialize>::deserialize(deserializer)?;
                text.parse().map_err($crate::export::serde::de::Error::custom)
            }
        }

        $crate::text_column!($name);
    };
}

/// Implements the traits of a text column.
#[cfg(feature = "sqlx")]
#[doc(hidden)]
#[macro_export]
macro_rules! text_column {
    ($name:ident) => {
        impl $crate::export::sqlx::Type<$crate::export::sqlx::Postgres> for $name {
            fn type_info() -> $crate::export::sqlx::postgres::PgTypeInfo {
                <str as $crate::export::sqlx::Type<$crate::export::sqlx::Postgres>>::type_info()
            }

            fn compatible(found: &$crate::export::sqlx::postgres::PgTypeInfo) -> bool {
                <str as $crate::export::sqlx::Type<$crate::export::sqlx::Postgres>>::compatible(
                    found,
                )
            }
        }

        impl $crate::export::sqlx::postgres::PgHasArrayType for $name {
            fn array_type_info() -> $crate::export::sqlx::postgres::PgTypeInfo {
                <&str as $crate::export::sqlx::postgres::PgHasArrayType>::array_type_info()
            }

            fn array_compatible(found: &$crate::export::sqlx::postgres::PgTypeInfo) -> bool {
                <&str as $crate::export::sqlx::postgres::PgHasArrayType>::array_compatible(found)
            }
        }

        impl $crate::export::sqlx::Encode<'_, $crate::export::sqlx::Postgres> for $name {
            fn encode_by_ref(
                &self,
                buffer: &mut $crate::export::sqlx::postgres::PgArgumentBuffer,
            ) -> ::std::result::Result<
                $crate::export::sqlx::encode::IsNull,
                $crate::export::sqlx::error::BoxDynError,
            > {
                use $crate::export::sqlx::{Encode, Postgres};
                let text = self.as_str();
                <&str as Encode<'_, Postgres>>::encode_by_ref(&text, buffer)
            }
        }

        impl<'r> $crate::export::sqlx::Decode<'r, $crate::export::sqlx::Postgres> for $name {
            fn decode(
                value: $crate::export::sqlx::postgres::PgValueRef<'r>,
            ) -> ::std::result::Result<Self, $crate::export::sqlx::error::BoxDynError> {
                let text = value.as_str()?;
                text.parse::<Self>().map_err(|error| format!("`{text}`: {error}").into())
            }
        }
    };
}

/// Implements nothing, since the build has no database.
#[cfg(not(feature = "sqlx"))]
#[doc(hidden)]
#[macro_export]
macro_rules! text_column {
    ($name:ident) => {};
}

#[cfg(test)]
mod tests {
    use crate::{CapsuleState, HostState, Isolation, OnTimeout, SnapshotState, UserState};
    use std::fmt::{Debug, Display};
    use std::str::FromStr;

    fn round_trips<T>(all: &[T], names: &[&str], field: &str)
    where
        T: Copy + Debug + Display + PartialEq + FromStr<Err = crate::resources::OutOfRange>,
    {
        assert_eq!(all.iter().map(T::to_string).collect::<Vec<_>>(), names);
        for (member, name) in all.iter().zip(names) {
            assert_eq!(name.parse::<T>().as_ref(), Ok(member));
        }
        for wrong in ["", "x", &names[0].to_uppercase(), &format!("{} ", names[0])] {
            let error = wrong.parse::<T>().unwrap_err();
            assert_eq!(error.field, field);
            assert!(error.message.contains(names[names.len() - 1]), "{error}");
        }
    }

    #[test]
    fn closed_sets_round_trip_and_refuse_other_texts() {
        let names = [
            "starting", "running", "pausing", "paused", "resuming", "missing", "error", "stopping",
            "stopped",
        ];
        round_trips(&CapsuleState::ALL, &names, "status");
        round_trips(&OnTimeout::ALL, &["pause", "pause_disk", "kill"], "on_timeout");
        round_trips(&SnapshotState::ALL, &["making", "ready", "removing"], "status");
        round_trips(&HostState::ALL, &["pending", "online", "unreachable"], "status");
        round_trips(&UserState::ALL, &["inactive", "active", "disabled", "deleted"], "status");
        round_trips(&Isolation::ALL, &["none", "tcg", "kvm", "jailed"], "isolation");
        let error = "explode".parse::<OnTimeout>().unwrap_err();
        assert_eq!(error.to_string(), "on_timeout must be pause, pause_disk or kill");
    }

    #[cfg(feature = "sqlx")]
    #[test]
    fn closed_set_is_a_text_of_postgresql() {
        use sqlx::encode::IsNull;
        use sqlx::postgres::{PgArgumentBuffer, PgHasArrayType, Postgres};
        use sqlx::{Encode, Type};

        let text = <str as Type<Postgres>>::type_info();
        assert_eq!(<OnTimeout as Type<Postgres>>::type_info(), text);
        assert!(<OnTimeout as Type<Postgres>>::compatible(&text));
        let texts = <&str as PgHasArrayType>::array_type_info();
        assert_eq!(OnTimeout::array_type_info(), texts);
        assert!(OnTimeout::array_compatible(&texts));
        for state in CapsuleState::ALL {
            let mut buffer = PgArgumentBuffer::default();
            let encoded = Encode::<Postgres>::encode_by_ref(&state, &mut buffer).unwrap();
            assert!(matches!(encoded, IsNull::No));
            assert_eq!(buffer.as_slice(), state.as_str().as_bytes());
        }
    }

    #[cfg(feature = "sqlx")]
    #[test]
    fn id_is_a_uuid_of_postgresql() {
        use crate::CapsuleId;
        use sqlx::postgres::{PgArgumentBuffer, PgHasArrayType, Postgres};
        use sqlx::{Encode, Type};
        use uuid::Uuid;

        let id = CapsuleId::new();
        assert_eq!(
            <CapsuleId as Type<Postgres>>::type_info(),
            <Uuid as Type<Postgres>>::type_info()
        );
        assert_eq!(CapsuleId::array_type_info(), Uuid::array_type_info());
        let mut buffer = PgArgumentBuffer::default();
        let _ = Encode::<Postgres>::encode_by_ref(&id, &mut buffer).unwrap();
        assert_eq!(buffer.as_slice(), id.0.as_bytes());
    }
}
