//! Conversions between columns and the types of the code: numbers without a sign, numbers in which
//! 0 stands for none, and ids in JSON.

use serde::{Deserialize, Deserializer};
use sqlx::error::BoxDynError;
use sqlx::postgres::{PgTypeInfo, PgValueRef, Postgres};
use sqlx::{Decode, Type};
use uuid::Uuid;

/// A `bigint` that is never negative.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Unsigned(pub u64);

impl Type<Postgres> for Unsigned {
    fn type_info() -> PgTypeInfo {
        <i64 as Type<Postgres>>::type_info()
    }

    fn compatible(found: &PgTypeInfo) -> bool {
        <i64 as Type<Postgres>>::compatible(found)
    }
}

impl<'r> Decode<'r, Postgres> for Unsigned {
    fn decode(value: PgValueRef<'r>) -> Result<Self, BoxDynError> {
        Ok(Self(u64::try_from(<i64 as Decode<Postgres>>::decode(value)?)?))
    }
}

impl From<Unsigned> for u64 {
    fn from(number: Unsigned) -> Self {
        number.0
    }
}

/// A number whose column holds 0 for none. The type parameter is the column's type.
#[derive(Debug, Clone, Copy, PartialEq, Eq, sqlx::Type)]
#[sqlx(transparent)]
pub(super) struct ZeroIsNone<N>(N);

impl TryFrom<ZeroIsNone<i32>> for Option<u32> {
    type Error = std::num::TryFromIntError;

    fn try_from(column: ZeroIsNone<i32>) -> Result<Self, Self::Error> {
        u32::try_from(column.0).map(|number| Some(number).filter(|number| *number > 0))
    }
}

impl TryFrom<ZeroIsNone<i64>> for Option<u64> {
    type Error = std::num::TryFromIntError;

    fn try_from(column: ZeroIsNone<i64>) -> Result<Self, Self::Error> {
        u64::try_from(column.0).map(|number| Some(number).filter(|number| *number > 0))
    }
}

/// A number that is never negative, or `NULL`. The type parameter is the column's type.
#[derive(Debug, Clone, Copy, PartialEq, Eq, sqlx::Type)]
#[sqlx(transparent)]
pub(super) struct Nullable<N>(Option<N>);

impl TryFrom<Nullable<i32>> for Option<u32> {
    type Error = std::num::TryFromIntError;

    fn try_from(column: Nullable<i32>) -> Result<Self, Self::Error> {
        column.0.map(u32::try_from).transpose()
    }
}

impl TryFrom<Nullable<i64>> for Option<u64> {
    type Error = std::num::TryFromIntError;

    fn try_from(column: Nullable<i64>) -> Result<Self, Self::Error> {
        column.0.map(u64::try_from).transpose()
    }
}

/// Makes the value of a column from a number. A number that no column can hold becomes the largest.
pub(super) fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// Makes the value of a column in which 0 stands for none.
pub(super) fn or_zero(number: Option<impl Into<u64>>) -> i64 {
    number.map_or(0, |number| signed(number.into()))
}

/// Reads an id that a statement wrote as the text of a UUID.
pub(super) fn id<'de, D: Deserializer<'de>, T: From<Uuid>>(json: D) -> Result<T, D::Error> {
    Uuid::deserialize(json).map(T::from)
}

/// Reads an id or `null`, as [`id`] does.
pub(super) fn optional_id<'de, D, T>(json: D) -> Result<Option<T>, D::Error>
where
    D: Deserializer<'de>,
    T: From<Uuid>,
{
    Ok(Option::<Uuid>::deserialize(json)?.map(T::from))
}

#[cfg(test)]
mod tests {
    use super::*;
    use types::TeamId;

    #[test]
    fn zero_is_none_and_negative_number_is_an_error() {
        assert_eq!(Option::<u32>::try_from(ZeroIsNone(0_i32)), Ok(None));
        assert_eq!(Option::<u32>::try_from(ZeroIsNone(i32::MAX)), Ok(Some(2_147_483_647)));
        assert!(Option::<u32>::try_from(ZeroIsNone(-1_i32)).is_err());
        assert_eq!(Option::<u64>::try_from(ZeroIsNone(7_i64)), Ok(Some(7)));
        assert!(Option::<u64>::try_from(ZeroIsNone(-1_i64)).is_err());
        assert_eq!(Option::<u32>::try_from(Nullable(Some(0_i32))), Ok(Some(0)));
        assert_eq!(Option::<u64>::try_from(Nullable::<i64>(None)), Ok(None));
        assert!(Option::<u32>::try_from(Nullable(Some(-1_i32))).is_err());
        assert_eq!((or_zero(None::<u32>), or_zero(Some(7_u32))), (0, 7));
        assert_eq!(signed(u64::MAX), i64::MAX);
    }

    #[test]
    fn closed_sets_of_rows_have_the_names_of_the_schema() {
        use crate::audit::ActorKind;
        use crate::db::audit::Outcome;
        use crate::db::channels::DeliveryState;
        use crate::db::events::ResourceType;
        use crate::db::host_tokens::Kind;
        use crate::db::sessions::SessionKind;
        use crate::db::users::Purpose;

        assert_eq!(ActorKind::ALL.map(ActorKind::as_str), ["user", "api_key", "host", "system"]);
        assert_eq!(Outcome::ALL.map(Outcome::as_str), ["ok", "refused"]);
        assert_eq!(DeliveryState::ALL.map(DeliveryState::as_str), ["waiting", "done", "failed"]);
        let resources = [
            "capsule",
            "snapshot",
            "host",
            "channel",
            "template",
            "api_key",
            "member",
            "invitation",
            "team",
        ];
        assert_eq!(ResourceType::ALL.map(ResourceType::as_str), resources);
        assert_eq!(Kind::ALL.map(Kind::as_str), ["registration", "refresh"]);
        assert_eq!(SessionKind::ALL.map(SessionKind::as_str), ["browser", "program"]);
        assert_eq!(Purpose::ALL.map(Purpose::as_str), ["activate", "reset"]);
        assert_eq!("failed".parse(), Ok(DeliveryState::Failed));
        assert!("Failed".parse::<DeliveryState>().is_err() && "".parse::<Outcome>().is_err());
        let json = serde_json::json!(SessionKind::Program);
        assert_eq!(json, "program");
        assert_eq!(serde_json::from_value::<SessionKind>(json).unwrap(), SessionKind::Program);
        assert!(serde_json::from_str::<SessionKind>("\"robot\"").is_err());
    }

    #[test]
    fn id_in_json_is_the_text_of_its_uuid() {
        #[derive(Deserialize)]
        struct Row {
            #[serde(deserialize_with = "id")]
            team: TeamId,
            #[serde(deserialize_with = "optional_id")]
            other: Option<TeamId>,
            #[serde(deserialize_with = "optional_id")]
            none: Option<TeamId>,
        }
        let (team, other) = (TeamId::new(), TeamId::new());
        let json = serde_json::json!({ "team": team.0, "other": other.0, "none": null });
        let row: Row = serde_json::from_value(json).unwrap();
        assert_eq!((row.team, row.other, row.none), (team, Some(other), None));
    }
}
