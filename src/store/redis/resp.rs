//! The Redis serialization protocol (RESP), versions 2 and 3: finds the ends of frames, and parses them.
//!
//! Strings and the values that contain others are parsed here. A value that is one line is parsed by the redis crate.

use crate::net::{self, short_length};
pub(super) use scanner::RespFraming;
pub(super) use values::value;

mod scanner;
mod values;

/// Parses the header of a string whose length has at most four digits, as most have. Returns the length of the header
/// and that of the string.
#[inline]
fn short_string(bytes: &[u8]) -> Option<(usize, usize)> {
    let (header, length) = short_length(bytes.strip_prefix(b"$")?)?;
    Some((b"$".len() + header, length))
}

/// Returns the value of a frame that is a short string, and the length of the frame, if `bytes` begins with all of it.
#[inline]
pub(super) fn short_value(bytes: &[u8]) -> Option<(&[u8], usize)> {
    let (value, length) = net::short_value(bytes.strip_prefix(b"$")?)?;
    Some((value, b"$".len() + length))
}

#[inline]
fn integer(digits: &[u8]) -> Option<i64> {
    let (is_negative, digits) = digits.strip_prefix(b"-").map_or((false, digits), |digits| (true, digits));
    if digits.is_empty() {
        return None;
    }
    let number = digits.iter().try_fold(0_i64, |number, digit| {
        let digit = i64::from(digit.wrapping_sub(b'0'));
        let digit = if digit > 9 { None } else { Some(digit) }?;
        // Counted downwards, since `i64::MIN` has no positive counterpart.
        number.checked_mul(10)?.checked_sub(digit)
    })?;
    if is_negative { Some(number) } else { number.checked_neg() }
}

#[cfg(test)]
mod tests {
    use redis::{Value, parse_redis_value};

    use super::scanner::{MAX_PUSH, MAX_VALUES};
    use super::{RespFraming, integer, short_value, value};
    use crate::net::{Frame, Framing, LARGE, Scan};

    /// Returns the frames in `wire`, which arrives byte by byte, without pushes.
    fn frames(wire: &[u8]) -> Result<Vec<Vec<u8>>, String> {
        let mut framing = RespFraming::default();
        let mut frames = Vec::new();
        let (mut start, mut end) = (0, 0);
        while end < wire.len() {
            end += 1;
            match framing.scan(&wire[start..end])? {
                Scan::Partial => {}
                Scan::Large { .. } => panic!("none of them is large"),
                Scan::Push { length } => start += length,
                Scan::Complete { length } => {
                    frames.push(wire[start..start + length].to_vec());
                    start += length;
                }
            }
        }
        assert_eq!(start, end, "nothing is left of {}", wire.escape_ascii());
        Ok(frames)
    }

    const REPLIES: [&[u8]; 20] = [
        b"+OK\r\n",
        b"+QUEUED\r\n",
        b"-ERR no\r\n",
        b":-12\r\n",
        b"$5\r\n1\r\n23\r\n",
        b"$0\r\n\r\n",
        b"$-1\r\n",
        b"_\r\n",
        b"#t\r\n",
        b",1.5\r\n",
        b"(3492890328409238509324850943850943825024385\r\n",
        b"*2\r\n$1\r\na\r\n*1\r\n:1\r\n",
        b"*2\r\n$1\r\n0\r\n*2\r\n$1\r\na\r\n$-1\r\n",
        b"*0\r\n",
        b"*-1\r\n",
        b"~2\r\n+a\r\n_\r\n",
        b"%1\r\n+a\r\n*0\r\n",
        b"=7\r\ntxt:abc\r\n",
        b"!6\r\nERR no\r\n",
        b"*3\r\n%0\r\n*1\r\n*0\r\n#f\r\n",
    ];

    #[test]
    fn every_kind_of_reply_is_one_frame_and_is_parsed_like_the_redis_crate_does() {
        for reply in REPLIES {
            assert_eq!(frames(reply).unwrap(), [reply], "{}", reply.escape_ascii());
            assert_eq!(frames(&reply.repeat(3)).unwrap().len(), 3, "{}", reply.escape_ascii());
            let parsed = value(Frame { bytes: reply, large: Vec::new() });
            assert_eq!(parsed.unwrap(), parse_redis_value(reply).unwrap(), "{}", reply.escape_ascii());
        }
    }

    #[test]
    fn strings_of_any_length_are_framed_and_parsed() {
        for length in [0, 9, 10, 999, 9_999, 10_000, LARGE] {
            let string = [format!("${length}\r\n").as_bytes(), &vec![b'7'; length], b"\r\n"].concat();
            let array = [b"*2\r\n", string.as_slice(), b"$-1\r\n"].concat();
            for reply in [&string, &array] {
                assert_eq!(frames(&reply.repeat(2)).unwrap(), [reply.as_slice(), reply]);
                let parsed = value(Frame { bytes: reply, large: Vec::new() });
                assert_eq!(parsed.unwrap(), parse_redis_value(reply).unwrap());
            }
            let cut_short = [&string[..string.len() - 2], b"77"].concat();
            assert!(RespFraming::default().scan(&cut_short).unwrap_err().contains("does not end"), "{length}");
        }
    }

    #[test]
    fn short_values_are_the_strings_that_have_arrived_completely() {
        for reply in REPLIES {
            let is_string = reply.starts_with(b"$") && reply != b"$-1\r\n";
            let behind = [reply, b"+OK\r\n"].concat();
            for wire in [reply, &behind] {
                let expected = is_string.then(|| (&reply[4..reply.len() - 2], reply.len()));
                assert_eq!(short_value(wire), expected, "{}", wire.escape_ascii());
            }
            for end in 0..reply.len() {
                assert_eq!(short_value(&reply[..end]), None, "{}", reply[..end].escape_ascii());
            }
        }
        for wire in [&b"$3\r\nabc\n\r"[..], b"$10\r\nshort\r\n", b"$\r\n\r\n", b"$00001\r\na\r\n", b"$1\ra\r\n"] {
            assert_eq!(short_value(wire), None, "{}", wire.escape_ascii());
        }
        let longest = [b"$9999\r\n".as_slice(), &[b'x'; 9999], b"\r\n"].concat();
        assert_eq!(short_value(&longest).map(|(value, length)| (value.len(), length)), Some((9999, longest.len())));
    }

    #[test]
    fn an_attribute_belongs_to_the_value_that_follows() {
        let attribute = b"|1\r\n+a\r\n*1\r\n:1\r\n".as_slice();
        for reply in REPLIES {
            let with = [attribute, reply].concat();
            assert_eq!(frames(&with).unwrap(), [with.as_slice()], "{}", with.escape_ascii());
            let inside = [b"*2\r\n:7\r\n", attribute, reply].concat();
            assert_eq!(frames(&inside).unwrap().len(), 1, "{}", inside.escape_ascii());
            let expected = Value::Array(vec![Value::Int(7), parse_redis_value(reply).unwrap()]);
            assert_eq!(value(Frame { bytes: &inside, large: Vec::new() }).unwrap(), expected);
        }
    }

    #[test]
    fn many_attributes_in_a_row_are_left_out() {
        let wire = [b"|0\r\n".repeat(MAX_VALUES as usize - 1).as_slice(), b":1\r\n"].concat();
        assert_eq!(RespFraming::default().scan(&wire), Ok(Scan::Complete { length: wire.len() }));
        assert_eq!(value(Frame { bytes: &wire, large: Vec::new() }).unwrap(), Value::Int(1));
    }

    #[test]
    fn a_push_is_not_a_reply() {
        let pushes: [&[u8]; 3] = [b">0\r\n", b">1\r\n+a\r\n", b">2\r\n$10\r\ninvalidate\r\n*1\r\n$1\r\nk\r\n"];
        for push in pushes {
            let wire = [push, b"+OK\r\n", push, push, b":1\r\n"].concat();
            assert_eq!(frames(&wire).unwrap(), [&b"+OK\r\n"[..], b":1\r\n"], "{}", push.escape_ascii());
        }
    }

    #[test]
    fn a_large_value_is_left_out_of_its_frame() {
        let length = LARGE + 1;
        let mut framing = RespFraming::default();
        let wire = format!("*2\r\n${length}\r\n$1\r\na\r\n");
        let place = wire.find("$1\r").unwrap();
        assert_eq!(framing.scan(&wire.as_bytes()[..place]), Ok(Scan::Large { place, length }));
        assert_eq!(framing.scan(wire.as_bytes()), Ok(Scan::Complete { length: wire.len() }));
        let frame = Frame { bytes: wire.as_bytes(), large: vec![(place, Some(vec![b'x'; length]))] };
        let expected = [Value::BulkString(vec![b'x'; length]), Value::BulkString(b"a".to_vec())];
        assert_eq!(value(frame).unwrap(), Value::Array(expected.into()));
    }

    #[test]
    fn a_push_is_discarded_as_a_whole() {
        let length = LARGE + 1;
        let push = [format!(">1\r\n${length}\r\n").as_bytes(), &vec![b'x'; length], b"\r\n"].concat();
        let mut framing = RespFraming::default();
        assert_eq!(framing.scan(&push), Ok(Scan::Push { length: push.len() }), "no string is taken out of it");
        let huge = format!(">1\r\n${}\r\n{}", 2 * MAX_PUSH, "x".repeat(MAX_PUSH));
        assert!(RespFraming::default().scan(huge.as_bytes()).unwrap_err().contains("a push of more"));
    }

    #[test]
    fn integers() {
        for number in [0, 1, -1, 42, i64::MAX, i64::MIN] {
            assert_eq!(integer(number.to_string().as_bytes()), Some(number));
        }
        for none in ["", "-", "+1", "1a", "--1", " 1", "9223372036854775808", "-9223372036854775809"] {
            assert_eq!(integer(none.as_bytes()), None, "{none}");
        }
    }

    #[test]
    fn malformed_and_unbounded_replies_are_refused() {
        let deep = "*1\r\n".repeat(40);
        let refused = [
            ("what\r\n", "no reply"),
            ("$x\r\n", "no reply"),
            ("$-2\r\n", "no reply"),
            ("$1\n", "no reply"),
            ("$?\r\n", "no reply"),
            ("*1\r\n>0\r\n", "no reply"),
            ("$1\r\nabc\r\n", "does not end"),
            ("$99999999999999999999\r\n", "no reply"),
            (&deep, "deep"),
            (&format!("+{}", "a".repeat(70_000)), "a line of more"),
            (&format!(">2000000\r\n{}", "$1\r\na\r\n".repeat(2_000_000)), "a push of more"),
            (&format!("*2000000\r\n{}", ":1\r\n".repeat(1 << 20)), "values"),
        ];
        for (wire, why) in refused {
            let mut framing = RespFraming::default();
            let mut outcome = Ok(Scan::Partial);
            for end in [1, 3, wire.len().min(1_100_000), wire.len()] {
                outcome = outcome.and_then(|_| framing.scan(&wire.as_bytes()[..end.min(wire.len())]));
            }
            let error = outcome.unwrap_err();
            assert!(error.contains(why), "{}: {error}", &wire[..wire.len().min(20)]);
        }
    }
}
