//! Codecs as strings: "messagepack" and "json".

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::Codec;
use crate::error::{Error, ErrorKind};

impl fmt::Display for Codec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Codec::MessagePack => "messagepack",
            Codec::Json => "json",
        })
    }
}

/// Parses "messagepack" or "json".
impl FromStr for Codec {
    type Err = Error;

    fn from_str(text: &str) -> Result<Codec, Error> {
        let known = [Codec::MessagePack, Codec::Json].into_iter().find(|codec| codec.to_string() == text);
        let refused = || format!("the codec {text:?} is not messagepack or json");
        known.ok_or_else(|| Error::new(ErrorKind::InvalidConfig, refused()))
    }
}

impl Serialize for Codec {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Codec {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Codec, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}
