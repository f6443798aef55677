//! Identities. A site or an agent is the hash of its public key, so nobody can claim another's; names are labels.

use std::fmt;

/// A site or agent: the first 16 bytes of blake3 of its certificate's SubjectPublicKeyInfo (DER).
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct SiteId(pub [u8; 16]);

impl SiteId {
    /// The id that belongs to a public key.
    pub fn of_public_key(spki_der: &[u8]) -> Self {
        let mut id = [0; 16];
        id.copy_from_slice(&blake3::hash(spki_der).as_bytes()[..16]);
        SiteId(id)
    }

    /// From its 16 bytes on the wire.
    pub fn from_slice(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(SiteId)
    }
}

impl fmt::Display for SiteId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|b| write!(f, "{b:02x}"))
    }
}

impl fmt::Debug for SiteId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0[..4].iter().try_for_each(|b| write!(f, "{b:02x}"))
    }
}

/// Content by blake3.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BlobHash(pub [u8; 32]);

impl BlobHash {
    /// The hash of these bytes.
    pub fn of(bytes: &[u8]) -> Self {
        BlobHash(*blake3::hash(bytes).as_bytes())
    }

    /// From its 32 bytes on the wire.
    pub fn from_slice(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(BlobHash)
    }
}

impl fmt::Display for BlobHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|b| write!(f, "{b:02x}"))
    }
}

impl fmt::Debug for BlobHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0[..4].iter().try_for_each(|b| write!(f, "{b:02x}"))
    }
}

/// A site's own number of a job: 1, 2, 3, ...
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct JobNo(pub u64);

/// Crockford's base 32, in lower case: no i, l, o, u.
const DIGITS: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";
/// Odd, so that multiplying by it permutes the 30-bit numbers; near the golden ratio, so that neighbours differ in their first letter.
const SPREAD: u64 = 0x278d_de6d;
const ID_BITS: u32 = 30;

impl JobNo {
    /// The id that users see: six letters, a permutation of 30 bits, so that short prefixes are soon unique. Numbers beyond 2^30 get more letters.
    pub fn id(self) -> String {
        let mask = (1 << ID_BITS) - 1;
        let (high, low) = (self.0 >> ID_BITS, self.0 & mask);
        let spread = low.wrapping_mul(SPREAD) & mask;
        let mut digits: Vec<u8> = (0..6).rev().map(|i| DIGITS[(spread >> (5 * i) & 31) as usize]).collect();
        let mut high = high;
        while high > 0 {
            digits.push(DIGITS[(high & 31) as usize]);
            high >>= 5;
        }
        String::from_utf8_lossy(&digits).into_owned()
    }
}

impl JobNo {
    /// From a whole [`id`](Self::id) of at least six letters; None: it is none.
    pub fn parse(id: &str) -> Option<JobNo> {
        let digit = |c: u8| DIGITS.iter().position(|d| *d == c).map(|d| d as u64);
        let (low, high) = id.as_bytes().split_at_checked(6)?;
        let spread = low.iter().try_fold(0, |n, c| Some(n << 5 | digit(*c)?))?;
        if high.len() > 6 || high.last() == Some(&DIGITS[0]) {
            return None;
        }
        let high = high.iter().rev().try_fold(0, |n, c| Some(n << 5 | digit(*c)?))?;
        // The inverse of an odd number modulo 2^64, by Newton; each step doubles the right bits.
        let inverse = (0..6).fold(SPREAD, |x, _| x.wrapping_mul(2u64.wrapping_sub(SPREAD.wrapping_mul(x))));
        Some(JobNo(high << ID_BITS | spread.wrapping_mul(inverse) & ((1 << ID_BITS) - 1)))
    }
}

impl JobNo {
    /// All up to `last` whose [`id`](Self::id) begins so, in no order. Nothing, as a beginning, is none's.
    pub fn beginning(prefix: &str, last: u64) -> impl Iterator<Item = JobNo> + '_ {
        let digit = |c: u8| DIGITS.iter().position(|d| *d == c).map(|d| d as u64);
        let (first, rest) = prefix.as_bytes().split_at(prefix.len().min(6));
        let spread = first.iter().try_fold(0, |n, c| Some(n << 5 | digit(*c)?)).filter(|_| !first.is_empty());
        let free = ID_BITS - 5 * first.len() as u32;
        let inverse = (0..6).fold(SPREAD, |x, _| x.wrapping_mul(2u64.wrapping_sub(SPREAD.wrapping_mul(x))));
        let low = move |k: u64| (spread.unwrap_or(0) << free | k).wrapping_mul(inverse) & ((1 << ID_BITS) - 1);
        let lows = if spread.is_some() { 0..1u64 << free } else { 0..0 };
        let high = (last >> ID_BITS) + 1;
        lows.flat_map(move |k| (0..high).map(move |h| JobNo(h << ID_BITS | low(k))))
            .filter(move |n| n.0 <= last && (rest.is_empty() || n.id().starts_with(prefix)))
    }
}

impl fmt::Display for JobNo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.id())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn those_that_begin_so_are_found(last in 1u64..5_000, letters in 1usize..7, of in 1u64..5_000) {
            let prefix = &JobNo(of).id()[..letters];
            let mut found: Vec<u64> = JobNo::beginning(prefix, last).map(|n| n.0).filter(|n| *n > 0).collect();
            found.sort_unstable();
            let all: Vec<u64> = (1..=last).filter(|n| JobNo(*n).id().starts_with(prefix)).collect();
            prop_assert_eq!(found, all);
        }

        #[test]
        fn job_ids_differ(a in 0u64..1 << 40, b in 0u64..1 << 40) {
            prop_assert_eq!(a == b, JobNo(a).id() == JobNo(b).id());
            prop_assert_eq!(JobNo::parse(&JobNo(a).id()), Some(JobNo(a)));
        }
    }

    #[test]
    fn neighbours_differ_in_their_first_letters() {
        let firsts: std::collections::BTreeSet<String> = (1..=30).map(|n| JobNo(n).id()[..2].to_string()).collect();
        assert!(firsts.len() >= 28, "{firsts:?}");
    }
}
