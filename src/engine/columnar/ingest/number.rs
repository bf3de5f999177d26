//! Numbers of line protocol, from text to value: one pass for what is common, the libraries for
//! what is long, has an exponent or is out of range.

use super::columns::Value;

/// Powers of ten that a float holds exactly. A mantissa below 2^53 divided by one of them is
/// rounded once, hence correctly.
const EXACT_POWERS: [f64; 23] = [
    1e0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9, 1e10, 1e11, 1e12, 1e13, 1e14, 1e15, 1e16, 1e17, 1e18,
    1e19, 1e20, 1e21, 1e22,
];
/// Digits that fit 64 bits whatever they are.
const SAFE_DIGITS: usize = 19;

/// Why a text is not a number that can be stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NumberError {
    /// It is none.
    Syntax,
    /// It is one, and too large for its type.
    Range,
}

/// The number at the start of `text` and how many bytes it has: `1`, `-1.5`, `1e-3`, `.5`, `12i`,
/// `12u`. What follows it is the caller's business.
#[inline]
pub(super) fn number(text: &[u8]) -> Result<(Value<'static>, usize), NumberError> {
    let negative = text.first() == Some(&b'-');
    let start = usize::from(negative);
    if let Some((value, len)) = short(text.get(start..).unwrap_or_default()) {
        return Ok((Value::Float(if negative { -value } else { value }), start + len));
    }
    let (mut mantissa, whole) = digits(text, start, 0);
    let mut at = start + whole;
    match text.get(at) {
        Some(b'i') if whole > 0 => {
            return Ok((Value::Int(signed(text, at, whole, mantissa, negative)?), at + 1));
        }
        Some(b'u') if whole > 0 && !negative => {
            return Ok((Value::UInt(unsigned(text, at, whole, mantissa)?), at + 1));
        }
        _ => {}
    }
    let mut fraction = 0;
    if text.get(at) == Some(&b'.') {
        (mantissa, fraction) = digits(text, at + 1, mantissa);
        at += 1 + fraction;
    }
    if whole + fraction == 0 {
        return Err(NumberError::Syntax);
    }
    let mut plain = true;
    if let Some(b'e' | b'E') = text.get(at) {
        plain = false;
        let sign = usize::from(matches!(text.get(at + 1), Some(b'-' | b'+')));
        let (_, exponent) = digits(text, at + 1 + sign, 0);
        if exponent == 0 {
            return Err(NumberError::Syntax);
        }
        at += 1 + sign + exponent;
    }
    let power = EXACT_POWERS.get(fraction);
    let value = match power {
        Some(power) if plain && whole + fraction <= SAFE_DIGITS && mantissa < 1 << 53 => {
            let value = mantissa as f64 / power;
            if negative { -value } else { value }
        }
        _ => fast_float2::parse(text.get(..at).unwrap_or_default()).map_err(|_| NumberError::Syntax)?,
    };
    if value.is_finite() { Ok((Value::Float(value), at)) } else { Err(NumberError::Range) }
}

/// The timestamp at the start of `text` and how many bytes it has.
#[inline]
pub(super) fn timestamp(text: &[u8]) -> Result<(i64, usize), NumberError> {
    let negative = text.first() == Some(&b'-');
    let start = usize::from(negative);
    let mut at = start;
    let mut value = 0_u64;
    while let Some(eight) =
        text.get(at..).and_then(|rest| rest.first_chunk()).and_then(|eight| eight_digits(*eight))
    {
        value = value.wrapping_mul(100_000_000).wrapping_add(eight);
        at += 8;
    }
    let (value, rest) = digits(text, at, value);
    at += rest;
    if at == start {
        return Err(NumberError::Syntax);
    }
    Ok((signed(text, at, at - start, value, negative)?, at))
}

/// A float with a point, less than eight digits before and less than eight behind it, no exponent: how
/// far it reaches is found without a look at each byte. What is not followed by enough bytes is left to
/// others, too.
#[inline]
fn short(text: &[u8]) -> Option<(f64, usize)> {
    let (whole, before) = below_eight(text)?;
    let (b'.', fraction) = text.get(before..)?.split_first()? else { return None };
    let (part, behind) = below_eight(fraction)?;
    if before + behind == 0 || matches!(fraction.get(behind), Some(b'e' | b'E')) {
        return None;
    }
    // Below 10^14, which a float holds exactly.
    let power = EXACT_POWERS.get(behind)?;
    Some(((whole as f64 * power + part as f64) / power, before + 1 + behind))
}

/// The value of the digits at the start of `text`, and how many they are; `None` if they are eight or
/// more, or if there are not eight bytes.
#[inline]
fn below_eight(text: &[u8]) -> Option<(u64, usize)> {
    let word = u64::from_le_bytes(*text.first_chunk()?);
    let count = not_digits(word).trailing_zeros() / 8;
    // Moved up, so that zeros go before them.
    let digits = word.checked_shl(64 - 8 * count).unwrap_or(0);
    (count < 8).then(|| (value_of(digits), count as usize))
}

/// Goes on with the decimal digits from `at`; wraps around beyond [`SAFE_DIGITS`].
#[inline]
fn digits(text: &[u8], at: usize, mut value: u64) -> (u64, usize) {
    let mut count = 0;
    for byte in text.get(at..).unwrap_or_default() {
        let digit = byte.wrapping_sub(b'0');
        if digit > 9 {
            break;
        }
        value = value.wrapping_mul(10).wrapping_add(u64::from(digit));
        count += 1;
    }
    (value, count)
}

/// Eight decimal digits at once; None if one of them is none.
#[inline]
fn eight_digits(text: [u8; 8]) -> Option<u64> {
    let word = u64::from_le_bytes(text);
    (not_digits(word) == 0).then(|| value_of(word))
}

/// The highest bit of the first byte that is no digit, and perhaps of some behind it.
#[inline]
fn not_digits(word: u64) -> u64 {
    let above = word.wrapping_add(0x4646_4646_4646_4646);
    let below = word.wrapping_sub(0x3030_3030_3030_3030);
    (above | below) & 0x8080_8080_8080_8080
}

/// Of eight digits, or bytes of zero in their place.
#[inline]
fn value_of(word: u64) -> u64 {
    // Pairs, then fours, then all eight: each step multiplies the upper half into place.
    let pairs = (word & 0x0f0f_0f0f_0f0f_0f0f).wrapping_mul(10 * 256 + 1) >> 8;
    let fours = (pairs & 0x00ff_00ff_00ff_00ff).wrapping_mul(100 * 65_536 + 1) >> 16;
    (fours & 0x0000_ffff_0000_ffff).wrapping_mul(10_000 * 4_294_967_296 + 1) >> 32
}

#[inline]
fn signed(text: &[u8], end: usize, count: usize, value: u64, negative: bool) -> Result<i64, NumberError> {
    if count > SAFE_DIGITS {
        return parse(text, end);
    }
    let value = i128::from(value);
    i64::try_from(if negative { -value } else { value }).map_err(|_| NumberError::Range)
}

fn unsigned(text: &[u8], end: usize, count: usize, value: u64) -> Result<u64, NumberError> {
    if count > SAFE_DIGITS { parse(text, end) } else { Ok(value) }
}

/// Only digits and a sign are left to it, so what it does not take is too large.
fn parse<T: std::str::FromStr>(text: &[u8], end: usize) -> Result<T, NumberError> {
    text.get(..end)
        .and_then(|text| std::str::from_utf8(text).ok())
        .and_then(|text| text.parse().ok())
        .ok_or(NumberError::Range)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_is_a_number() {
        let float = |text: &str, value: f64| {
            assert_eq!(number(text.as_bytes()), Ok((Value::Float(value), text.len())))
        };
        float("0", 0.0);
        float("-1.5", -1.5);
        float(".5", 0.5);
        float("7.", 7.0);
        float("1e3", 1000.0);
        float("-1.25E-2", -0.0125);
        float("0.1", 0.1);
        float("9007199254740993", 9_007_199_254_740_992.0);
        float("123456789012345678901234567890", 123_456_789_012_345_678_901_234_567_890.0);
        float("0.00000000000000000000000000001", 1e-29);
        float("5e-324", 5e-324);
        float("1e-999", 0.0);
        assert!(matches!(number(b"-0"), Ok((Value::Float(zero), 2)) if zero.is_sign_negative()));
        assert_eq!(number(b"1.5,"), Ok((Value::Float(1.5), 3)));
        assert_eq!(number(b"9223372036854775807i"), Ok((Value::Int(i64::MAX), 20)));
        assert_eq!(number(b"-9223372036854775808i "), Ok((Value::Int(i64::MIN), 21)));
        assert_eq!(number(b"00000000000000000000000012i"), Ok((Value::Int(12), 27)));
        assert_eq!(number(b"18446744073709551615u"), Ok((Value::UInt(u64::MAX), 21)));
        for text in
            ["9223372036854775808i", "-9223372036854775809i", "18446744073709551616u", "1e400", "-1e400"]
        {
            assert_eq!(number(text.as_bytes()), Err(NumberError::Range), "{text}");
        }
        for text in ["", "-", ".", "-.", "e5", "1e", "1e+", "i", "u", "+1"] {
            assert_eq!(number(text.as_bytes()), Err(NumberError::Syntax), "{text}");
        }
    }

    #[test]
    fn what_is_a_timestamp() {
        assert_eq!(timestamp(b"1700000000123456789\n"), Ok((1_700_000_000_123_456_789, 19)));
        assert_eq!(timestamp(b"-5 "), Ok((-5, 2)));
        assert_eq!(timestamp(b"12345678"), Ok((12_345_678, 8)));
        assert_eq!(timestamp(b"-9223372036854775808"), Ok((i64::MIN, 20)));
        assert_eq!(timestamp(b"9223372036854775808"), Err(NumberError::Range));
        assert_eq!(timestamp(b"99999999999999999999999999"), Err(NumberError::Range));
        assert_eq!(timestamp(b"-"), Err(NumberError::Syntax));
        assert_eq!(timestamp(b"now"), Err(NumberError::Syntax));
    }

    proptest! {
        #[test]
        fn short_floats_are_read_as_the_standard_library_reads_them(
            text in "-?[0-9]{0,9}\\.[0-9]{0,9}",
            behind in "[,e\n \u{80}-\u{ff}:/]{0,12}",
        ) {
            let Ok(expected) = text.parse::<f64>() else { return Ok(()) };
            prop_assume!(!behind.starts_with('e'));
            let (value, len) = number(format!("{text}{behind}").as_bytes()).unwrap();
            let Value::Float(value) = value else { panic!("{value:?}") };
            prop_assert_eq!((value.to_bits(), len), (expected.to_bits(), text.len()));
        }

        #[test]
        fn floats_are_read_as_the_standard_library_reads_them(
            text in "-?[0-9]{1,25}(\\.[0-9]{1,25})?([eE][+-]?[0-9]{1,3})?",
        ) {
            let expected: f64 = text.parse().unwrap();
            match number(text.as_bytes()) {
                Ok((Value::Float(value), len)) => {
                    prop_assert_eq!(value.to_bits(), expected.to_bits());
                    prop_assert_eq!(len, text.len());
                }
                other => prop_assert!(other == Err(NumberError::Range) && expected.is_infinite()),
            }
        }

        #[test]
        fn integers_come_back(signed: i64, unsigned: u64) {
            prop_assert_eq!(number(format!("{signed}i").as_bytes()).unwrap().0, Value::Int(signed));
            prop_assert_eq!(number(format!("{unsigned}u").as_bytes()).unwrap().0, Value::UInt(unsigned));
            prop_assert_eq!(timestamp(signed.to_string().as_bytes()).unwrap().0, signed);
        }
    }
}
