//! Recognizes common files that are not model weights by their first bytes.

/// What a file with these first bytes is, as a sentence fragment ("`x.gguf` …"), and a hint.
pub(super) fn recognise(start: &[u8]) -> Option<(&'static str, &'static str)> {
    const FORMATS: [(&[u8], &str, &str); 8] = [
        (
            b"version https://git-lfs",
            "is a Git LFS pointer, not the file itself",
            "download the file: `git lfs pull` in the repository, or MODEL=owner/name",
        ),
        (
            b"PK\x03\x04",
            "is a zip archive: weights that PyTorch saved, or a packed model",
            OTHER_FORM,
        ),
        (b"\x80\x02", PICKLE, OTHER_FORM),
        (b"\x80\x04", PICKLE, OTHER_FORM),
        // Little-endian `ggml`, `ggmf`, `ggjt`: llama.cpp's formats before August 2023.
        (b"lmgg", OLD, CONVERT),
        (b"fmgg", OLD, CONVERT),
        (b"tjgg", OLD, CONVERT),
        (
            b"<!DOCTYPE",
            "is a web page",
            "download the file, not the page that shows it",
        ),
    ];
    const PICKLE: &str = "is a Python pickle: weights that PyTorch saved";
    const OTHER_FORM: &str = "use the model as a .gguf file or as a folder with safetensors";
    const OLD: &str = "is in a format that llama.cpp used before GGUF";
    const CONVERT: &str = "use a GGUF file of this model";
    let found = FORMATS.iter().find(|(magic, ..)| start.starts_with(magic));
    found.map(|&(_, what, hint)| (what, hint))
}
