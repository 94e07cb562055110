//! Reading of objects whose renamed fields may have either name.

use super::Rename;
use serde::de::value::StrDeserializer;
use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, forward_to_deserialize_any};
use serde_json::Value;
use std::fmt;

/// Deserializer of a type with renamed fields. It hands every field on by its current name.
pub(super) struct EitherName<D> {
    inner: D,
    renames: &'static [Rename],
}

impl<D> EitherName<D> {
    pub(super) fn new(inner: D, renames: &'static [Rename]) -> Self {
        Self { inner, renames }
    }
}

impl<'de, D: Deserializer<'de>> Deserializer<'de> for EitherName<D> {
    type Error = D::Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
        self.inner.deserialize_any(Object { inner: visitor, renames: self.renames })
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, D::Error> {
        let object = Object { inner: visitor, renames: self.renames };
        self.inner.deserialize_struct(name, fields, object)
    }

    fn is_human_readable(&self) -> bool {
        self.inner.is_human_readable()
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option
        unit unit_struct newtype_struct seq tuple tuple_struct map enum identifier ignored_any
    }
}

/// Visitor of an object with renamed fields.
struct Object<V> {
    inner: V,
    renames: &'static [Rename],
}

impl<'de, V: Visitor<'de>> Visitor<'de> for Object<V> {
    type Value = V::Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.expecting(f)
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<V::Value, A::Error> {
        let new = |rename| Field { rename, former: None, current: None };
        let fields = self.renames.iter().map(new).collect();
        self.inner.visit_map(Entries { inner: map, fields, is_read: false, value: None })
    }

    fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> Result<V::Value, A::Error> {
        self.inner.visit_seq(seq)
    }
}

/// A renamed field, with its values by both names. Null is a value here.
struct Field {
    rename: &'static Rename,
    former: Option<Value>,
    current: Option<Value>,
}

impl Field {
    fn set(&mut self, value: Value, name: Name) -> Result<(), String> {
        let Rename { former, current, check } = self.rename;
        let (name, own, other) = match name {
            Name::Former => (former, &mut self.former, &self.current),
            Name::Current => (current, &mut self.current, &self.former),
        };
        if own.is_some() {
            return Err(format!("duplicate field `{name}`"));
        }
        if !value.is_null() {
            check(&value)?;
            if other.as_ref().is_some_and(|other| !other.is_null() && *other != value) {
                return Err(format!("{current} differs from {former}"));
            }
        }
        *own = Some(value);
        Ok(())
    }

    /// Returns the field's value, unless the field is absent or null.
    fn value(self) -> Option<Value> {
        [self.current, self.former].into_iter().flatten().find(|value| !value.is_null())
    }
}

#[derive(Clone, Copy)]
enum Name {
    Former,
    Current,
}

/// Entries of an object. Renamed fields come last, since either name may be the last entry.
struct Entries<A> {
    inner: A,
    fields: Vec<Field>,
    /// True once `inner` has no more entries.
    is_read: bool,
    /// Value of the renamed field whose name was handed on.
    value: Option<Value>,
}

impl<'de, A: MapAccess<'de>> MapAccess<'de> for Entries<A> {
    type Error = A::Error;

    fn next_key_seed<K>(&mut self, seed: K) -> Result<Option<K::Value>, A::Error>
    where
        K: DeserializeSeed<'de>,
    {
        let mut seed = Some(seed);
        while !self.is_read {
            let key = ReadKey { seed: &mut seed, fields: &self.fields };
            match self.inner.next_key_seed(key)? {
                Some(Key::Other(key)) => return Ok(Some(key)),
                // The value is checked here, since errors carry the path of the entry being read.
                Some(Key::Renamed(at, name)) => match self.fields.get_mut(at) {
                    Some(field) => self.inner.next_value_seed(ReadValue { field, name })?,
                    None => return Err(A::Error::custom("unknown field")),
                },
                None => self.is_read = true,
            }
        }
        while let Some(field) = self.fields.pop() {
            let current = field.rename.current;
            // A field without a value leaves the seed to the next one.
            let Some(value) = field.value() else { continue };
            let Some(seed) = seed.take() else { break };
            self.value = Some(value);
            return seed.deserialize(StrDeserializer::new(current)).map(Some);
        }
        Ok(None)
    }

    fn next_value_seed<V>(&mut self, seed: V) -> Result<V::Value, A::Error>
    where
        V: DeserializeSeed<'de>,
    {
        match self.value.take() {
            Some(value) => seed.deserialize(value).map_err(A::Error::custom),
            None => self.inner.next_value_seed(seed),
        }
    }
}

enum Key<K> {
    /// Position of a renamed field, and the name that the object has for it.
    Renamed(usize, Name),
    Other(K),
}

/// Seed and visitor of a key. It uses `seed` only for a field that was not renamed.
struct ReadKey<'a, K> {
    seed: &'a mut Option<K>,
    fields: &'a [Field],
}

impl<'de, K: DeserializeSeed<'de>> DeserializeSeed<'de> for ReadKey<'_, K> {
    type Value = Key<K::Value>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_identifier(self)
    }
}

impl<'de, K: DeserializeSeed<'de>> Visitor<'de> for ReadKey<'_, K> {
    type Value = Key<K::Value>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the name of a field")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Self::Value, E> {
        for (at, field) in self.fields.iter().enumerate() {
            if text == field.rename.former {
                return Ok(Key::Renamed(at, Name::Former));
            }
            if text == field.rename.current {
                return Ok(Key::Renamed(at, Name::Current));
            }
        }
        let seed = self.seed.take().ok_or_else(|| E::custom("key read twice"))?;
        seed.deserialize(StrDeserializer::new(text)).map(Key::Other)
    }
}

/// Seed of a renamed field's value.
struct ReadValue<'a> {
    field: &'a mut Field,
    name: Name,
}

impl<'de> DeserializeSeed<'de> for ReadValue<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        let value = Value::deserialize(deserializer)?;
        self.field.set(value, self.name).map_err(D::Error::custom)
    }
}
