//! The spool's bytes: a header, then frames of `length, crc, payload`. A frame that is not whole ends the file: it was never acknowledged. A whole frame
//! behind a damaged one can't come from a torn write, so it is refused as damage.

use prost::Message;

use super::record::Batch;
use crate::limits::SPOOL_FRAME_BYTES_MAX;

/// First bytes of the file.
pub const MAGIC: &[u8; 8] = b"igspool\0";
/// Format of the records.
pub const VERSION: u32 = 1;
/// Magic and version.
pub const HEADER_BYTES: usize = 12;
const FRAME_HEADER_BYTES: usize = 8;

/// Why bytes are not a spool.
#[derive(Debug, PartialEq, Eq)]
pub enum Fault {
    /// No spool at all.
    NotASpool,
    /// Of a later version.
    Newer(u32),
    /// Damaged at this offset, in the middle.
    Damaged(usize),
}

/// The header of a new file.
pub fn header() -> Vec<u8> {
    [MAGIC.as_slice(), &VERSION.to_le_bytes()].concat()
}

/// Append a batch as one frame.
pub fn encode(batch: &Batch, out: &mut Vec<u8>) {
    let at = out.len();
    out.extend([0; FRAME_HEADER_BYTES]);
    // A Vec grows, so that encoding into it can't fail.
    let _ = batch.encode(out);
    let body = &out[at + FRAME_HEADER_BYTES..];
    let (len, crc) = (body.len() as u32, crc32(body));
    out[at..at + 4].copy_from_slice(&len.to_le_bytes());
    out[at + 4..at + 8].copy_from_slice(&crc.to_le_bytes());
}

/// All whole frames, and how many bytes they take, header included.
pub fn decode(bytes: &[u8]) -> Result<(Vec<Batch>, usize), Fault> {
    let header = bytes.get(..HEADER_BYTES).filter(|h| h.starts_with(MAGIC)).ok_or(Fault::NotASpool)?;
    let version = number(header, MAGIC.len()).unwrap_or(0);
    if version > VERSION {
        return Err(Fault::Newer(version));
    }
    let (mut at, mut batches) = (HEADER_BYTES, Vec::new());
    loop {
        match frame(bytes, at) {
            Frame::Whole(batch, next) => {
                batches.push(batch);
                at = next;
            }
            Frame::Torn(Some(next)) if matches!(frame(bytes, next), Frame::Whole(..)) => return Err(Fault::Damaged(at)),
            Frame::Torn(_) | Frame::End => return Ok((batches, at)),
        }
    }
}

enum Frame {
    Whole(Batch, usize),
    /// Where the next one would begin.
    Torn(Option<usize>),
    End,
}

fn number(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at + 4).and_then(|b| b.try_into().ok()).map(u32::from_le_bytes)
}

fn frame(bytes: &[u8], at: usize) -> Frame {
    let (Some(len), Some(crc)) = (number(bytes, at), number(bytes, at + 4)) else { return Frame::End };
    let (len, start) = (len as usize, at + FRAME_HEADER_BYTES);
    if len == 0 {
        return Frame::End;
    }
    if len > SPOOL_FRAME_BYTES_MAX {
        return Frame::Torn(None);
    }
    let Some(body) = bytes.get(start..start + len) else { return Frame::Torn(None) };
    match Batch::decode(body) {
        Ok(batch) if crc32(body) == crc => Frame::Whole(batch, start + len),
        _ => Frame::Torn(Some(start + len)),
    }
}

const CRC_TABLE: [u32; 256] = {
    let mut table = [0; 256];
    let mut i = 0;
    while i < 256 {
        let mut c = i as u32;
        let mut k = 0;
        while k < 8 {
            c = if c & 1 == 1 { 0xedb8_8320 ^ (c >> 1) } else { c >> 1 };
            k += 1;
        }
        table[i] = c;
        i += 1;
    }
    table
};

/// CRC-32 (IEEE), as in zip and Ethernet.
pub fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0u32, |c, b| CRC_TABLE[((c ^ u32::from(*b)) & 0xff) as usize] ^ (c >> 8))
}

#[cfg(test)]
mod tests {
    use super::super::record::{Record, What};
    use super::*;
    use proptest::prelude::*;

    fn batch(n: u64) -> Batch {
        Batch { records: vec![Record { what: Some(What::Acked(n)) }, Record { what: Some(What::Spec(vec![n as u8; 20])) }] }
    }

    fn file(n: u64) -> Vec<u8> {
        let mut bytes = header();
        (1..=n).for_each(|i| encode(&batch(i), &mut bytes));
        bytes
    }

    #[test]
    fn crc_is_the_known_one() {
        assert_eq!(0xcbf4_3926, crc32(b"123456789"));
    }

    #[test]
    fn faults_are_told_apart() {
        assert_eq!(Err(Fault::NotASpool), decode(b"something else"));
        assert_eq!(Err(Fault::NotASpool), decode(b""));
        let mut newer = header();
        newer[8] = 9;
        assert_eq!(Err(Fault::Newer(9)), decode(&newer));
        let mut bytes = file(3);
        bytes[HEADER_BYTES + 12] ^= 1;
        assert_eq!(Err(Fault::Damaged(HEADER_BYTES)), decode(&bytes));
    }

    proptest! {
        #[test]
        fn a_cut_anywhere_keeps_the_whole_frames_before_it(cut in 0usize..200, zeros in 0usize..40) {
            let whole = file(4);
            let cut = HEADER_BYTES + cut.min(whole.len() - HEADER_BYTES);
            let mut bytes = whole[..cut].to_vec();
            bytes.extend(vec![0; zeros]);
            let (got, end) = decode(&bytes).unwrap();
            prop_assert!(end <= cut && got.iter().enumerate().all(|(i, b)| *b == batch(i as u64 + 1)));
            let per = (whole.len() - HEADER_BYTES) / 4;
            prop_assert_eq!(got.len(), (cut - HEADER_BYTES) / per);
        }

        #[test]
        fn any_bytes_are_refused_or_taken(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
            let mut all = header();
            all.extend(bytes);
            let _ = decode(&all);
        }
    }
}
