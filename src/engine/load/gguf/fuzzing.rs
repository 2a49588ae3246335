//! Laws of the GGUF header.

use super::{Metadata, header};

/// Metadata of arbitrary bytes, if they are a header.
pub(in crate::engine) fn metadata(data: &[u8]) -> Option<Metadata> {
    header::parse_metadata(data).ok()
}

/// A header that is accepted is no larger than its file, and neither are its tensors. Returns whether the
/// file is complete.
pub(in crate::engine) fn is_complete(data: &[u8]) -> bool {
    let Ok(header) = header::parse(data) else {
        return false;
    };
    let metadata = metadata(data).expect("the header has been parsed");
    assert_eq!(metadata.len(), header.metadata.len());
    // A name's length, a rank, a dimension, a type and an offset.
    assert!(header.tensors.len() * 32 <= data.len());
    let size = data.len() as u64;
    if header::missing_data(&header, size).is_some() {
        return false;
    }
    for info in header.tensors.values() {
        let start = header.data_offset.checked_add(info.offset);
        let end = start.and_then(|start| start.checked_add(info.bytes().unwrap_or(0)));
        assert!(end.is_some_and(|end| end <= size), "{info:?}");
    }
    true
}
