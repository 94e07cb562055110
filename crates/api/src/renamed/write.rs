//! Writing of objects whose renamed fields have both names.

use super::Rename;
use serde::Serialize;
use serde::ser::{Error, Impossible, SerializeStruct, Serializer};

/// Name of a type or a variant.
type Text = &'static str;

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
        match self.renames.iter().find(|rename| rename.present == key) {
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

/// Methods for types other than structs, which have no renamed fields.
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
        // `len` counts the fields that are present, so the sum may be too large. JSON needs only to
        // know an empty object.
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
        serialize_unit_struct(Text) -> S::Ok;
        serialize_unit_variant(Text, u32, Text) -> S::Ok;
        serialize_newtype_struct<T>(Text, &T) -> S::Ok;
        serialize_newtype_variant<T>(Text, u32, Text, &T) -> S::Ok;
        serialize_seq(Option<usize>) -> Self::SerializeSeq;
        serialize_tuple(usize) -> Self::SerializeTuple;
        serialize_tuple_struct(Text, usize) -> Self::SerializeTupleStruct;
        serialize_tuple_variant(Text, u32, Text, usize) -> Self::SerializeTupleVariant;
        serialize_map(Option<usize>) -> Self::SerializeMap;
        serialize_struct_variant(Text, u32, Text, usize) -> Self::SerializeStructVariant;
    }
}
