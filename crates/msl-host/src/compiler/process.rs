//! Processes and files.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::{CompileError, Diagnostic};

pub(super) fn io(action: &str, source: std::io::Error) -> CompileError {
    CompileError::Io { action: action.into(), source }
}

/// First line of what `program --version` prints, where the program can be started.
pub(super) fn version(program: &Path) -> Option<String> {
    let output = Command::new(program).arg("--version").stdin(Stdio::null()).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| text.lines().next().unwrap_or_default().to_string())
}

/// Writes a file so that others see all of it or nothing.
pub(super) fn write(folder: &Path, path: &Path, bytes: &[u8]) -> Result<(), CompileError> {
    let failed = |error| io(&format!("writing {}", path.display()), error);
    let mut file = tempfile::NamedTempFile::new_in(folder).map_err(failed)?;
    file.write_all(bytes).map_err(failed)?;
    file.persist(path).map_err(|error| failed(error.error))?;
    Ok(())
}

/// Runs a compiler; errors carry the lines of the source.
pub(super) fn start(
    program: &Path,
    arguments: &[String],
    input: Option<&str>,
) -> Result<String, CompileError> {
    let failed = |error| io(&format!("running {}", program.display()), error);
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(if input.is_some() { Stdio::piped() } else { Stdio::null() })
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(failed)?;
    let feed = child.stdin.take();
    let output = std::thread::scope(|scope| {
        if let (Some(mut pipe), Some(text)) = (feed, input) {
            // A compiler that stops reading has an error of its own to tell.
            scope.spawn(move || pipe.write_all(text.as_bytes()));
        }
        child.wait_with_output()
    })
    .map_err(failed)?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.success() {
        return Ok(text);
    }
    let log = String::from_utf8_lossy(&output.stderr).into_owned();
    Err(CompileError::Compiler { diagnostics: diagnostics(&log), log })
}

/// The errors of a compiler's output that name lines of the source.
fn diagnostics(log: &str) -> Vec<Diagnostic> {
    let mut found = Vec::new();
    for line in log.lines() {
        let Some(at) = line.find("error: ") else { continue };
        let place = &line[..at];
        let number = place
            .strip_prefix("msl:")
            .and_then(|p| p.split(':').next())
            .and_then(|n| n.parse().ok());
        found.push(Diagnostic { line: number.unwrap_or(0), message: line[at + 7..].to_string() });
    }
    found
}

/// FNV-1a over 128 bits.
pub(super) struct Hash(u128);

impl Hash {
    pub(super) fn new() -> Self {
        Hash(0x6c62_272e_07bb_0142_62b8_2175_6295_c58d)
    }

    /// Adds a text and its end.
    pub(super) fn add(&mut self, text: &str) {
        for byte in text.bytes().chain([0xff]) {
            self.0 =
                (self.0 ^ u128::from(byte)).wrapping_mul(0x0000_0000_0100_0000_0000_0000_0000_013b);
        }
    }

    pub(super) fn finish(&self) -> u128 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn diagnostics_name_lines_of_the_source() {
        let found = diagnostics("msl:7:3: error: no\nfoo.h:2:1: error: bad\nnote: x\n");
        assert_eq!(found[0], Diagnostic { line: 7, message: "no".into() });
        assert_eq!(found[1].line, 0);
    }
}
