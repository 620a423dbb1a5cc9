//! `kiln quantize`.

use std::path::Path;
use std::process::{Command, Stdio};

use kiln::format::{GgmlType, Gguf, GgufWriter, TensorData};

use crate::support::{Run, command, fixture, json, kiln, text};

/// Runs `kiln quantize` from the llama fixture into a folder of its own.
fn from_llama(options: &[&str]) -> (Run, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let out = text(&folder.path().join("out.gguf"));
    let run = kiln(&[&["quantize", &fixture("llama.gguf"), &out], options].concat());
    (run, folder)
}

fn is_empty(folder: &Path) -> bool {
    std::fs::read_dir(folder).unwrap().count() == 0
}

#[test]
fn the_result_runs() {
    let (run, folder) = from_llama(&["q8_0", "-t", "2"]);
    assert_eq!(run.stderr.lines().count(), 1, "{run:?}");
    for part in ["q8_0: ", "tensors in ", "bits per weight"] {
        assert!(run.stderr.contains(part), "{run:?}");
    }
    assert_eq!(run.ok(), "");
    let out = text(&folder.path().join("out.gguf"));
    kiln(&["generate", "-m", &out, "-t", "1", "hello", "-n", "4", "--temp", "0"]).ok();
    assert!(kiln(&["inspect", &out]).ok().contains("Q8_0"));
}

#[test]
fn the_report_lists_every_tensor() {
    let (run, _folder) = from_llama(&["q4_k_m", "--report"]);
    assert!(run.stderr.contains("because of the length of the rows"), "{run:?}");
    let table = run.ok();
    for part in ["RMSE", "max error", "blk.0.attn_v.weight", "(for q4_k)", "F32"] {
        assert!(table.contains(part), "{part:?} is not in {table}");
    }
    let (run, folder) = from_llama(&["Q4_K_M", "--report", "--format", "json"]);
    let report = json(&run.ok());
    assert_eq!(report["file_type"], "q4_k_m");
    let file = Gguf::open(folder.path().join("out.gguf")).unwrap();
    let lines = report["tensors"].as_array().unwrap();
    assert_eq!(lines.len(), file.tensors().len());
    for (line, info) in lines.iter().zip(file.tensors()) {
        assert_eq!(
            (line["name"].as_str(), line["to"].as_str()),
            (Some(info.name()), Some(info.ggml_type().name()))
        );
        assert_eq!(line["bytes_to"].as_u64(), Some(info.byte_len() as u64));
        let [rmse, largest] = ["rmse", "max_error"].map(|key| line[key].as_f64().unwrap());
        assert!(rmse <= largest && (rmse > 0.0) == (line["from"] != line["to"]), "{line}");
    }
}

#[test]
fn parts_of_a_split_model_become_one_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| text(&folder.path().join(name));
    let file = Gguf::open(fixture("llama.gguf")).unwrap();
    let (first, second) = file.tensors().split_at(5);
    for (number, tensors) in [(0u16, first), (1, second)] {
        let mut writer = GgufWriter::new();
        for (key, value) in file.metadata().iter().filter(|_| number == 0) {
            writer.insert(key, value).unwrap();
        }
        writer.insert("split.count", 2u16).unwrap();
        writer.insert("split.no", number).unwrap();
        for info in tensors {
            let bytes = file.bytes_of(info).unwrap();
            writer.tensor(info.name(), info.ggml_type(), info.shape(), bytes).unwrap();
        }
        writer.write(path(&format!("m-0000{}-of-00002.gguf", number + 1))).unwrap();
    }
    let (split, whole) = (path("split.gguf"), path("whole.gguf"));
    let source = path("m-00001-of-00002.gguf");
    kiln(&["quantize", &source, &split, "q8_0"]).ok();
    kiln(&["quantize", &fixture("llama.gguf"), &whole, "q8_0"]).ok();
    assert!(std::fs::read(split).unwrap() == std::fs::read(whole).unwrap());
    let second = path("m-00002-of-00002.gguf");
    kiln(&["quantize", &source, &second, "q8_0"]).error_with(&["the source itself"]);
}

#[test]
fn mistakes_are_one_line_with_the_next_step() {
    let (run, folder) = from_llama(&["q9_x"]);
    run.error_with(&["q9_x", "q4_k_m", "iq4_xs", "bf16", "`kiln quantize --help`"]);
    assert!(is_empty(folder.path()));
    from_llama(&["q8_0", "--format", "json"]).0.error_with(&["--report"]);
    from_llama(&[]).0.error_with(&["<TYPE>"]);
    kiln(&["quantize", "no.gguf", "out.gguf", "q8_0"]).error_with(&["no.gguf", "check the path"]);

    let model = fixture("llama.gguf");
    kiln(&["quantize", &model, &model, "q8_0"]).error_with(&["the source itself", "another name"]);
    kiln(&["quantize", &model, ".", "q8_0"]).error_with(&["not a regular file"]);
    let nowhere = text(&folder.path().join("no/out.gguf"));
    kiln(&["quantize", &model, &nowhere, "q8_0"]).error_with(&["cannot create", "check the path"]);

    let (run, folder) = from_llama(&["q4_0"]);
    run.ok();
    let [small, out] = ["out.gguf", "again.gguf"].map(|name| text(&folder.path().join(name)));
    kiln(&["quantize", &small, &out, "q5_0"])
        .error_with(&["quantised already (Q4_0)", "--allow-requantize"]);
    kiln(&["quantize", &small, &out, "q5_0", "--allow-requantize"]).ok();
}

/// Writes a model of one large tensor to `path`.
fn large(path: &Path) {
    let (rows, row) = (4096, 4096);
    let mut writer = GgufWriter::new();
    writer.insert("general.architecture", "llama").unwrap();
    let values = TensorData::stream(move |out| {
        (0..rows).try_for_each(|i| out.write_all(&[i as u8, 0x3c].repeat(row)))
    });
    writer.tensor("blk.0.ffn_up.weight", GgmlType::F16, &[rows, row], values).unwrap();
    writer.write(path).unwrap();
}

#[cfg(unix)]
#[test]
fn a_full_disk_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out.gguf");
    // A limit on the size of files, in blocks of 512 or 1024 bytes, stands in for the disk.
    let script = "trap '' XFSZ; ulimit -f 16; exec \"$@\"";
    let run: Run = Command::new("sh")
        .args(["-c", script, "sh", env!("CARGO_BIN_EXE_kiln")])
        .args(["quantize", &fixture("llama.gguf"), &text(&out), "f16"])
        .output()
        .unwrap()
        .into();
    run.error_with(&["out.gguf", "free some space"]);
    assert!(is_empty(folder.path()));
}

#[cfg(unix)]
#[test]
fn a_signal_leaves_nothing() {
    let [source, folder] = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let model = source.path().join("in.gguf");
    large(&model);
    let out = text(&folder.path().join("out.gguf"));
    let mut child = command(&["quantize", &text(&model), &out, "q2_k", "-t", "1"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // The temporary file shows that the work has begun.
    while is_empty(folder.path()) {
        assert!(child.try_wait().unwrap().is_none(), "it ended before it wrote anything");
        std::thread::yield_now();
    }
    let killed = Command::new("kill").args(["-TERM", &child.id().to_string()]).status().unwrap();
    assert!(killed.success());
    Run::from(child.wait_with_output().unwrap()).error_with(&["interrupted", "was not written"]);
    assert!(is_empty(folder.path()));
}
