//! Hazards, barriers and the arena.

use crate::common::*;
use kiln_core::backend::{Backend, Buffer, Execute};
use kiln_core::ops::*;
use kiln_core::{
    Barriers, DType, Device, Error, Executable, Location, OpError, Plan, PlanOptions, Recording,
    Shape, SharedBytes, Step, Tensor, Unsupported,
};
use kiln_reference::ReferenceBackend;
use std::ops::Range;
use std::sync::Arc;

const UNFUSED: PlanOptions = PlanOptions { fuse: false, barriers: Barriers::Hazards };

/// Tensors `[4, 4]` and a recording of copies with a factor of 2.
struct Copies {
    tensors: Vec<Tensor>,
    rec: Recording,
}

impl Copies {
    fn new(n: usize) -> Self {
        let lab = Lab::new();
        let tensors = (0..n).map(|_| lab.zeros(DType::F32, [4, 4])).collect();
        Self { tensors, rec: lab.device.record() }
    }

    /// Reads a tensor, writes another.
    fn step(mut self, from: usize, to: usize) -> Self {
        scale(&mut self.rec, &self.tensors[from], &self.tensors[to]);
        self
    }

    /// Reads rows of a tensor, writes rows of another.
    fn rows(mut self, from: (usize, Range<usize>), to: (usize, Range<usize>)) -> Self {
        let [from, to] =
            [from, to].map(|(tensor, rows)| self.tensors[tensor].slice(0, rows).unwrap());
        scale(&mut self.rec, &from, &to);
        self
    }

    /// Whether each step has a barrier before it, and what it depends on.
    fn plan(self) -> (Vec<bool>, Vec<Vec<usize>>) {
        let step = self.rec.finish_with(UNFUSED).unwrap();
        let steps = step.plan().steps();
        (
            steps.iter().map(|step| step.barrier).collect(),
            steps.iter().map(|step| step.depends_on.clone()).collect(),
        )
    }
}

fn scale(rec: &mut Recording, input: &Tensor, output: &Tensor) {
    rec.push(Scale { input, output, factor: 2.0 }).unwrap();
}

#[test]
fn the_three_hazards_and_two_reads() {
    let no: Vec<usize> = vec![];
    let read_after_write = Copies::new(3).step(0, 1).step(1, 2).plan();
    assert_eq!(read_after_write, (vec![false, true], vec![no.clone(), vec![0]]));
    let write_after_read = Copies::new(3).step(0, 1).step(2, 0).plan();
    assert_eq!(write_after_read, (vec![false, true], vec![no.clone(), vec![0]]));
    let write_after_write = Copies::new(3).step(0, 2).step(1, 2).plan();
    assert_eq!(write_after_write, (vec![false, true], vec![no.clone(), vec![0]]));
    let read_after_read = Copies::new(3).step(0, 1).step(0, 2).plan();
    assert_eq!(read_after_read, (vec![false, false], vec![no.clone(), no]));
}

#[test]
fn ranges_that_do_not_overlap_need_no_barrier() {
    let split = Copies::new(2)
        .rows((0, 0..2), (1, 0..2))
        .rows((0, 2..4), (1, 2..4))
        .rows((1, 0..1), (0, 3..4));
    // The third reads what the first wrote and overwrites what the second read.
    assert_eq!(split.plan(), (vec![false, false, true], vec![vec![], vec![], vec![0, 1]]));
    let touching = Copies::new(2).rows((0, 0..2), (1, 0..2)).rows((0, 0..2), (1, 1..3));
    assert_eq!(touching.plan().0, [false, true]);
}

#[test]
fn columns_count_with_the_gaps_between_them() {
    let lab = Lab::new();
    let [x, y] = [(); 2].map(|()| lab.f32(&[1.0; 16], [4, 4]));
    let columns = |t: &Tensor, range| t.slice(1, range).unwrap();
    let mut rec = lab.device.record();
    scale(&mut rec, &columns(&x, 0..2), &columns(&y, 0..2));
    scale(&mut rec, &columns(&x, 2..4), &columns(&y, 2..4));
    let step = rec.finish().unwrap();
    assert_eq!(step.plan().barriers(), 1);
    step.run().unwrap();
    assert_eq!(values(&y), [2.0; 16]);
}

#[test]
fn implied_dependencies_are_left_out() {
    // 0 -> 1 -> 2, and 2 also reads what 0 wrote.
    let lab = Lab::new();
    let t: Vec<Tensor> = (0..4).map(|_| lab.zeros(DType::F32, [4, 4])).collect();
    let mut rec = lab.device.record();
    scale(&mut rec, &t[0], &t[1]);
    scale(&mut rec, &t[1], &t[2]);
    rec.push(Add { a: &t[1], b: &t[2], output: &t[3] }).unwrap();
    let step = rec.finish().unwrap();
    let edges: Vec<_> = step.plan().steps().iter().map(|step| &step.depends_on[..]).collect();
    assert_eq!(edges, [&[][..], &[0], &[1]]);
}

#[test]
fn one_barrier_serves_all_steps_before_it() {
    let (barriers, edges) = Copies::new(6).step(0, 1).step(2, 3).step(1, 4).step(3, 5).plan();
    assert_eq!(barriers, [false, false, true, false]);
    assert_eq!(edges, [vec![], vec![], vec![0], vec![1]]);
}

#[test]
fn an_update_orders_like_a_write() {
    let lab = Lab::new();
    let input = lab.f32(&[1.0; 8], [1, 1, 8]);
    let cache = lab.zeros(DType::F32, [1, 4, 8]);
    let starts = [0, 1].map(|start| lab.u32(&[start]));
    let mut rec = lab.device.record();
    for start in &starts {
        rec.push(KvAppend { input: &input, start, cache: &cache, ring: false }).unwrap();
    }
    assert_eq!(rec.finish().unwrap().plan().barriers(), 1);
}

#[test]
fn every_step_can_have_a_barrier() {
    let mut copies = Copies::new(8);
    for i in 0..4 {
        copies = copies.step(2 * i, 2 * i + 1);
    }
    let options = PlanOptions { fuse: false, barriers: Barriers::EveryStep };
    let step = copies.rec.finish_with(options).unwrap();
    assert_eq!(step.plan().barriers(), 3);
    assert!(!step.plan().steps()[0].barrier);
}

/// A chain of `n` temporaries of 4096 bytes from `x` to a result.
fn chain(lab: &Lab, x: &Tensor, n: usize) -> (Executable, Vec<Tensor>, Tensor) {
    let mut rec = lab.device.record();
    let y = lab.zeros(DType::F32, [32, 32]);
    let temps: Vec<Tensor> = (0..n).map(|_| rec.temp(DType::F32, [32, 32]).unwrap()).collect();
    let mut from = x;
    for temp in &temps {
        scale(&mut rec, from, temp);
        from = temp;
    }
    scale(&mut rec, from, &y);
    (rec.finish_with(UNFUSED).unwrap(), temps, y)
}

#[test]
fn the_arena_is_reused_by_lifetime() {
    let lab = Lab::new();
    let x = lab.f32(&[1.0; 1024], [32, 32]);
    for (n, expected) in [(0, 0), (1, 4096), (2, 8192), (9, 8192)] {
        let (step, temps, y) = chain(&lab, &x, n);
        let plan = step.plan();
        assert_eq!(plan.arena_bytes(), expected, "{n} temporaries");
        step.run().unwrap();
        assert_eq!(values(&y), [2f64.powi(n as i32 + 1); 1024]);
        for (temp, next) in temps.iter().zip(temps.iter().skip(1)) {
            assert_ne!(plan.locate(temp), plan.locate(next), "alive at the same time");
        }
        assert_eq!(plan.locate(&x), Location::Buffer(0));
        let row = y.slice(0, 3..4).unwrap();
        assert_eq!(plan.locate(&row), Location::Buffer(3 * 128));
        if let Some(temp) = temps.first() {
            let Location::Arena(base) = plan.locate(temp) else { panic!("not in the arena") };
            let row = temp.slice(0, 3..4).unwrap();
            assert_eq!(plan.locate(&row), Location::Arena(base + 3 * 128));
        }
    }
}

/// The reference, as a device that runs up to four steps in a kernel.
struct Joins(ReferenceBackend);

impl Backend for Joins {
    fn name(&self) -> &'static str {
        "joins"
    }

    fn description(&self) -> String {
        self.0.description()
    }

    fn allocate(&self, bytes: usize) -> Result<Box<dyn Buffer>, Error> {
        self.0.allocate(bytes)
    }

    fn import(&self, t: DType, shape: Shape, bytes: SharedBytes) -> Result<Box<dyn Buffer>, Error> {
        self.0.import(t, shape, bytes)
    }

    fn supports(&self, op: &Op<Tensor>) -> Result<(), Unsupported> {
        self.0.supports(op)
    }

    fn joins(&self) -> usize {
        4
    }

    fn compile(&self, plan: Arc<Plan>) -> Result<Box<dyn Execute>, Error> {
        self.0.compile(plan)
    }
}

#[test]
fn small_temporaries_keep_their_place_while_steps_may_join() {
    let lab = Lab { device: Device::new(Joins(ReferenceBackend::default())) };
    let x = lab.f32(&[1.0; 1024], [32, 32]);
    for (n, expected) in [(1, 1), (5, 5), (6, 6), (20, 6)] {
        let (step, temps, y) = chain(&lab, &x, n);
        let plan = step.plan();
        assert_eq!(plan.arena_bytes(), expected * 4096, "{n} temporaries");
        step.run().unwrap();
        assert_eq!(values(&y), [2f64.powi(n as i32 + 1); 1024]);
        // Each is written in its step, read in the next, and stays for four more.
        for (i, temp) in temps.iter().enumerate() {
            for other in temps.iter().skip(i + 1).take(5) {
                assert_ne!(plan.locate(temp), plan.locate(other), "{i}");
            }
        }
    }
}

#[test]
fn sharing_the_arena_is_a_hazard() {
    let lab = Lab::new();
    let [x, y, z] = [(); 3].map(|()| lab.f32(&[1.0; 16], [4, 4]));
    let mut rec = lab.device.record();
    let [a, b] = [(); 2].map(|()| rec.temp(DType::F32, [4, 4]).unwrap());
    scale(&mut rec, &x, &a);
    scale(&mut rec, &a, &y);
    scale(&mut rec, &x, &b);
    scale(&mut rec, &b, &z);
    let step = rec.finish_with(UNFUSED).unwrap();
    let plan = step.plan();
    assert_eq!(plan.locate(&a), plan.locate(&b));
    assert_eq!(plan.steps()[2].depends_on, [1]);
    assert!(plan.steps()[2].barrier);
}

/// Every operand of a step: memory, range of bytes, whether it is written.
fn uses(plan: &Plan, step: &Step) -> Vec<(Option<kiln_core::Id>, Range<usize>, bool)> {
    let operands = step.op.operands().into_iter();
    operands
        .map(|(role, tensor)| {
            let len = tensor.byte_range().len();
            let (memory, start) = match plan.locate(&tensor) {
                Location::Arena(start) => (None, start),
                Location::Buffer(start) => (Some(tensor.storage().id()), start),
            };
            (memory, start..start + len, role.access.writes())
        })
        .collect()
}

/// Checks edges and barriers of a plan against all pairs of steps.
fn check_plan(plan: &Plan) {
    let steps = plan.steps();
    let uses: Vec<_> = steps.iter().map(|step| uses(plan, step)).collect();
    let conflict = |i: usize, j: usize| {
        uses[i].iter().any(|(memory, range, writes)| {
            uses[j].iter().any(|(other, other_range, other_writes)| {
                memory == other
                    && (*writes || *other_writes)
                    && range.start < other_range.end
                    && other_range.start < range.end
            })
        })
    };
    let mut before: Vec<Vec<bool>> = Vec::new();
    let mut last_barrier = 0;
    for (j, step) in steps.iter().enumerate() {
        let mut reached = vec![false; steps.len()];
        for &i in &step.depends_on {
            assert!(conflict(i, j), "step {j} needs not wait for {i}");
            reached[i] = true;
            reached.iter_mut().zip(&before[i]).for_each(|(reached, &b)| *reached |= b);
        }
        for &i in &step.depends_on {
            let implied = step.depends_on.iter().any(|&k| before[k][i]);
            assert!(!implied, "{i} before {j} is implied");
        }
        let needed = (last_barrier..j).any(|i| conflict(i, j));
        assert_eq!(step.barrier, needed, "barrier before step {j}");
        if step.barrier {
            last_barrier = j;
        }
        let missed = (0..j).find(|&i| conflict(i, j) && !reached[i]);
        assert_eq!(missed, None, "step {j} must wait for it");
        before.push(reached);
    }
}

/// Random scalings, sums, products and norms on parts of a few tensors and temporaries.
fn random_recording(lab: &Lab, rng: &mut Rng, steps: usize) -> (Recording, Vec<Tensor>) {
    let tensors: Vec<Tensor> = (0..4).map(|_| lab.f32(&rng.values(64), [8, 8])).collect();
    let mut rec = lab.device.record();
    let mut all = tensors.clone();
    while rec.ops().len() < steps {
        let full = [(); 3].map(|()| all[rng.below(all.len())].clone());
        match rng.below(4) {
            // A temporary is written in full before it joins the others.
            0 => {
                let temp = rec.temp(DType::F32, [8, 8]).unwrap();
                scale(&mut rec, &full[0], &temp);
                all.push(temp);
            }
            // Pairs that may be fused, with something in between.
            1 => {
                let [input, other, output] = &full;
                let temp = rec.temp(DType::F32, [8, 8]).unwrap();
                rec.push(RmsNorm { input, weight: None, output: &temp, eps: 1e-3 }).unwrap();
                random_step(&mut rec, rng, &all);
                rec.push(Mul { a: other, b: &temp, output }).or_else(refused).unwrap();
            }
            2 => {
                let [a, b, output] = &full;
                let sum = rec.temp(DType::F32, [8, 8]).unwrap();
                rec.push(Add { a, b, output: &sum }).unwrap();
                random_step(&mut rec, rng, &all);
                rec.push(RmsNorm { input: &sum, weight: None, output, eps: 1e-3 }).unwrap();
                all.push(sum);
            }
            _ => random_step(&mut rec, rng, &all),
        }
    }
    (rec, tensors)
}

/// Outputs that overlap an input in part are refused: nothing is recorded then.
fn refused(error: Error) -> Result<(), Error> {
    if matches!(error, Error::Op(OpError::Alias { .. })) { Ok(()) } else { Err(error) }
}

/// An operation on rows of tensors, the last ones more often.
fn random_step(rec: &mut Recording, rng: &mut Rng, all: &[Tensor]) {
    let rows = 1 + rng.below(8);
    let [a, b, output] = &[(); 3].map(|()| {
        let recent = all.len().saturating_sub(3 + rng.below(6));
        let first = rng.below(9 - rows);
        let tensor = &all[recent + rng.below(all.len() - recent)];
        tensor.slice(0, first..first + rows).unwrap()
    });
    let pushed = match rng.below(4) {
        0 => rec.push(Add { a, b, output }),
        1 => rec.push(Mul { a, b, output }),
        2 => rec.push(Scale { input: a, output, factor: 0.5 }),
        _ => rec.push(RmsNorm { input: a, weight: None, output, eps: 1e-3 }),
    };
    pushed.or_else(refused).unwrap();
}

#[test]
fn random_plans_wait_for_what_they_must_and_nothing_else() {
    let mut fused_steps = 0;
    for seed in 0..300 {
        let mut expected = None;
        for fuse in [false, true] {
            for barriers in [Barriers::Hazards, Barriers::EveryStep] {
                let lab = Lab::new();
                let mut rng = Rng(seed);
                let steps = 2 + rng.below(40);
                let (rec, results) = random_recording(&lab, &mut rng, steps);
                let recorded = rec.ops().len();
                let step = rec.finish_with(PlanOptions { fuse, barriers }).unwrap();
                fused_steps += recorded - step.plan().steps().len();
                if barriers == Barriers::Hazards {
                    check_plan(step.plan());
                }
                step.run().unwrap();
                let got: Vec<_> = results.iter().map(bits).collect();
                assert!(*expected.get_or_insert_with(|| got.clone()) == got, "seed {seed}");
            }
        }
    }
    assert!(fused_steps > 1000, "{fused_steps} fusions are too few to test them");
}
