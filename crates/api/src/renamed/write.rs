//! Writing of objects whose renamed fields have both names.

use super::Rename;
use serde::Serialize;
use serde::ser::{Error, Impossible, SerializeStruct, Serializer};

/// Name of a type or a variant.
type TypeName = &'static str;

/// Serializer of a struct with renamed fields.
pub(super) struct BothNames<S> {
    inner: S,
    renames: &'static [Rename],
}

impl<S> BothNames<S> {
    pub(super) fn new(inner: S, renames: &'static [Rename]) -> Self {
        Self { inner, renames }
    }
}

impl<S: SerializeStruct> SerializeStruct for BothNames<S> {
    type Ok = S::Ok;
    type Error = S::Error;

    fn serialize_field<T>(&mut self, key: &'static str, value: &T) -> Result<(), S::Error>
    where
        T: Serialize + ?Sized,
    {
        self.inner.serialize_field(key, value)?;
        match self.renames.iter().find(|rename| rename.current == key) {
            Some(rename) => self.inner.serialize_field(rename.former, value),
            None => Ok(()),
        }
    }

    fn skip_field(&mut self, key: &'static str) -> Result<(), S::Error> {
        self.inner.skip_field(key)
    }

    fn end(self) -> Result<S::Ok, S::Error> {
        self.inner.end()
    }
}

/// Implements the methods for types other than structs, which have no renamed fields. Each method
/// fails.
macro_rules! not_a_struct {
    ($($method:ident $(<$type:ident>)? ($($arg:ty),*) -> $ok:ty;)+) => {
        $(fn $method $(<$type: Serialize + ?Sized>)? (self, $(_: $arg),*) -> Result<$ok, S::Error> {
            Err(S::Error::custom("not a struct"))
        })+
    };
}

impl<S: Serializer> Serializer for BothNames<S> {
    type Ok = S::Ok;
    type Error = S::Error;
    type SerializeSeq = Impossible<S::Ok, S::Error>;
    type SerializeTuple = Impossible<S::Ok, S::Error>;
    type SerializeTupleStruct = Impossible<S::Ok, S::Error>;
    type SerializeTupleVariant = Impossible<S::Ok, S::Error>;
    type SerializeMap = Impossible<S::Ok, S::Error>;
    type SerializeStruct = BothNames<S::SerializeStruct>;
    type SerializeStructVariant = Impossible<S::Ok, S::Error>;

    fn serialize_struct(
        self,
        name: &'static str,
        len: usize,
    ) -> Result<Self::SerializeStruct, S::Error> {
        // An absent field has no former name either, so the sum is an upper bound. JSON only tells
        // an empty object from others.
        let len = if len == 0 { 0 } else { len + self.renames.len() };
        let inner = self.inner.serialize_struct(name, len)?;
        Ok(BothNames { inner, renames: self.renames })
    }

    fn is_human_readable(&self) -> bool {
        self.inner.is_human_readable()
    }

    not_a_struct! {
        serialize_bool(bool) -> S::Ok;
        serialize_i8(i8) -> S::Ok;
        serialize_i16(i16) -> S::Ok;
        serialize_i32(i32) -> S::Ok;
        serialize_i64(i64) -> S::Ok;
        serialize_u8(u8) -> S::Ok;
        serialize_u16(u16) -> S::Ok;
        serialize_u32(u32) -> S::Ok;
        serialize_u64(u64) -> S::Ok;
        serialize_f32(f32) -> S::Ok;
        serialize_f64(f64) -> S::Ok;
        serialize_char(char) -> S::Ok;
        serialize_str(&str) -> S::Ok;
        serialize_bytes(&[u8]) -> S::Ok;
        serialize_none() -> S::Ok;
        serialize_some<T>(&T) -> S::Ok;
        serialize_unit() -> S::Ok;
        serialize_unit_struct(TypeName) -> S::Ok;
        serialize_unit_variant(TypeName, u32, TypeName) -> S::Ok;
        serialize_newtype_struct<T>(TypeName, &T) -> S::Ok;
        serialize_newtype_variant<T>(TypeName, u32, TypeName, &T) -> S::Ok;
        serialize_seq(Option<usize>) -> Self::SerializeSeq;
        serialize_tuple(usize) -> Self::SerializeTuple;
        serialize_tuple_struct(TypeName, usize) -> Self::SerializeTupleStruct;
        serialize_tuple_variant(TypeName, u32, TypeName, usize) -> Self::SerializeTupleVariant;
        serialize_map(Option<usize>) -> Self::SerializeMap;
        serialize_struct_variant(TypeName, u32, TypeName, usize) -> Self::SerializeStructVariant;
    }
}
