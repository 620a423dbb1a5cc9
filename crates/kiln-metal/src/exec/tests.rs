//! Plans on a runtime that only notes what it is given.

use super::*;
use crate::Metal;
use crate::caps::Caps;
use crate::library::{FunctionConstant, Library};
use kiln_core::ops::{Add, Copy, RmsNorm, Scale};
use kiln_core::{Barriers, DType, Device, PlanOptions, SharedBytes};
use std::sync::Mutex;

/// What a command is, as far as the tests look.
#[derive(Clone, Debug, PartialEq)]
struct Noted {
    step: usize,
    barrier: bool,
    function: String,
    offsets: Vec<usize>,
}

#[derive(Default)]
struct Notes {
    runs: Vec<Vec<Noted>>,
    libraries: Vec<String>,
    pipelines: Vec<String>,
}

/// Borrowed memory begins at this offset of its buffer.
const BASE: usize = 48;

#[derive(Debug)]
struct Bytes {
    bytes: Mutex<Vec<u8>>,
    borrowed: bool,
}

impl DeviceMemory for Bytes {
    fn bytes(&self) -> usize {
        self.bytes.lock().unwrap().len()
    }

    fn base(&self) -> usize {
        if self.borrowed { BASE } else { 0 }
    }

    fn is_borrowed(&self) -> bool {
        self.borrowed
    }

    fn read(&self, offset: usize, out: &mut [u8]) -> Result<()> {
        out.copy_from_slice(&self.bytes.lock().unwrap()[offset..offset + out.len()]);
        Ok(())
    }

    fn write(&self, offset: usize, data: &[u8]) -> Result<()> {
        self.bytes.lock().unwrap()[offset..offset + data.len()].copy_from_slice(data);
        Ok(())
    }

    fn clear(&self) -> Result<()> {
        self.bytes.lock().unwrap().fill(0);
        Ok(())
    }
}

struct Noting {
    notes: Arc<Mutex<Notes>>,
    threads: usize,
    fault: Option<Fault>,
}

impl Runtime for Noting {
    type Buffer = Bytes;
    type Library = ();
    type Pipeline = String;
    type Prepared = Vec<Noted>;

    fn name(&self) -> &'static str {
        "noting"
    }

    fn description(&self) -> String {
        String::new()
    }

    fn caps(&self) -> Caps {
        Caps::APPLE7
    }

    fn allocate(&self, bytes: usize) -> Result<Bytes> {
        Ok(Bytes { bytes: Mutex::new(vec![0; bytes]), borrowed: false })
    }

    fn import(&self, bytes: SharedBytes) -> Result<Bytes> {
        Ok(Bytes { bytes: Mutex::new(bytes.as_ref().to_vec()), borrowed: true })
    }

    fn library(&self, library: &Library, _: &str) -> Result<(), String> {
        self.notes.lock().unwrap().libraries.push(library.name.to_owned());
        Ok(())
    }

    fn pipeline(
        &self,
        (): &(),
        function: &str,
        _: &[(FunctionConstant, u32)],
        _: usize,
    ) -> Result<String, String> {
        self.notes.lock().unwrap().pipelines.push(function.to_owned());
        Ok(function.to_owned())
    }

    fn threads(&self, _: &String) -> usize {
        self.threads
    }

    fn static_threadgroup_memory(&self, _: &String) -> usize {
        128
    }

    fn prepare(&self, commands: Vec<Command<Self>>) -> Result<Vec<Noted>> {
        let noted = |command: Command<Self>| Noted {
            step: command.step,
            barrier: command.barrier,
            function: command.pipeline.to_string(),
            offsets: command.buffers.iter().map(|bound| bound.offset).collect(),
        };
        Ok(commands.into_iter().map(noted).collect())
    }

    fn run(&self, prepared: &Vec<Noted>) -> Result<(), Fault> {
        self.notes.lock().unwrap().runs.push(prepared.clone());
        self.fault.clone().map_or(Ok(()), Err)
    }

    fn profile(&self, _: &Vec<Noted>, steps: usize) -> Result<Vec<Duration>, Fault> {
        Ok(vec![Duration::ZERO; steps])
    }
}

fn noting() -> (Noting, Arc<Mutex<Notes>>) {
    let notes = Arc::default();
    (Noting { notes: Arc::clone(&notes), threads: 1024, fault: None }, notes)
}

/// `y = 2 x`, `z = 3 x`, `w = y + z` in a plan without fusion.
fn three_steps(device: &Device, barriers: Barriers) -> Result<()> {
    let [x, w] = [device.tensor(DType::F32, [4, 64])?, device.tensor(DType::F32, [4, 64])?];
    let mut rec = device.record();
    let [y, z] = [rec.temp(DType::F32, [4, 64])?, rec.temp(DType::F32, [4, 64])?];
    rec.push(Scale { input: &x, output: &y, factor: 2.0 })?;
    rec.push(Scale { input: &x, output: &z, factor: 3.0 })?;
    rec.push(Add { a: &y, b: &z, output: &w })?;
    rec.finish_with(PlanOptions { fuse: false, barriers })?.run()
}

#[test]
fn barriers_are_where_the_planner_puts_them() {
    for (barriers, expected) in
        [(Barriers::Hazards, [false, false, true]), (Barriers::EveryStep, [false, true, true])]
    {
        let (runtime, notes) = noting();
        three_steps(&Metal::device(runtime), barriers).unwrap();
        let notes = notes.lock().unwrap();
        let run = &notes.runs[0];
        assert_eq!(run.iter().map(|noted| noted.barrier).collect::<Vec<_>>(), expected);
        assert_eq!(run.iter().map(|noted| noted.step).collect::<Vec<_>>(), [0, 1, 2]);
    }
}

#[test]
fn libraries_and_pipelines_are_made_once() {
    let (runtime, notes) = noting();
    let device = Metal::device(runtime);
    three_steps(&device, Barriers::Hazards).unwrap();
    three_steps(&device, Barriers::Hazards).unwrap();
    let notes = notes.lock().unwrap();
    assert_eq!(notes.libraries, ["elementwise"]);
    assert_eq!(notes.pipelines, ["scale_f32", "add_f32"]);
    assert_eq!(notes.runs.len(), 2);
}

#[test]
fn temporaries_share_the_arena_and_weights_keep_their_place() {
    let (runtime, notes) = noting();
    let device = Metal::device(runtime);
    let weight = device.import(DType::F32, [3, 8], SharedBytes::from_vec(vec![0; 96])).unwrap();
    let y = device.tensor(DType::F32, [8]).unwrap();
    let mut rec = device.record();
    let row = weight.slice(0, 1..2).unwrap().reshape([8]).unwrap();
    let h = rec.temp(DType::F32, [8]).unwrap();
    rec.push(Copy { input: &row, output: &h }).unwrap();
    rec.push(Copy { input: &h, output: &y }).unwrap();
    rec.finish().unwrap().run().unwrap();
    let notes = notes.lock().unwrap();
    assert_eq!(notes.runs[0][0].offsets, [BASE + 32, 0]);
    assert_eq!(notes.runs[0][1].offsets, [0, 0]);
}

#[test]
fn a_fault_names_its_step() {
    let (mut runtime, _) = noting();
    runtime.fault = Some(Fault { step: Some(2), problem: "it broke".to_owned() });
    let error = three_steps(&Metal::device(runtime), Barriers::Hazards).unwrap_err();
    let text = error.to_string();
    assert!(text.starts_with("noting: step 2, add a:f32[4, 64]"), "{text}");
    assert!(text.ends_with("it broke"), "{text}");
}

#[test]
fn a_pipeline_of_too_few_threads_is_an_error() {
    let (mut runtime, _) = noting();
    runtime.threads = 64;
    let device = Metal::device(runtime);
    let x = device.tensor(DType::F32, [1, 4096]).unwrap();
    let y = device.tensor(DType::F32, [1, 4096]).unwrap();
    let mut rec = device.record();
    rec.push(RmsNorm { input: &x, weight: None, output: &y, eps: 1e-6 }).unwrap();
    let text = rec.finish().unwrap_err().to_string();
    assert!(text.contains("step 0, rms_norm") && text.contains("256 threads"), "{text}");
    assert!(text.contains("64"), "{text}");
}
