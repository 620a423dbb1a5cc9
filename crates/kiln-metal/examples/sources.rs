//! Writes the Metal sources as they are compiled into a folder, to look at or to compile ahead of time.
//!
//!     cargo run --release -p kiln-metal --example sources -- FOLDER

use std::path::Path;
use std::{env, fs, io};

fn main() -> io::Result<()> {
    let folder = env::args().nth(1).unwrap_or_else(|| "target/metal".to_owned());
    fs::create_dir_all(&folder)?;
    for (name, text) in kiln_metal::sources() {
        let path = Path::new(&folder).join(format!("{name}.metal"));
        fs::write(&path, text)?;
        println!("{}", path.display());
    }
    Ok(())
}
