//! What is watched while a run goes on: on the simulated GPU and its `libnvidia-ml.so.1`, whose readings each
//! test writes into a file.

use std::path::Path;

use serde_json::Value;

use crate::common::{Printed, Workspace, run};
use crate::simgpu::driver;
use crate::tiny_model;

/// A sound card that only this program uses, without an energy counter.
const SOUND: &str = "driver_version=580.65.06
memory_total=4294967296
memory_used=1073741824
mig_mode=0
power_mw=120000
clock_sm_mhz=1755
clock_memory_mhz=2619
temperature_c=61
utilization_gpu=87
utilization_memory=12
throttle_reasons=1
processes=self:1000
graphics_processes=none
";

/// A run with these readings, which must succeed.
#[track_caller]
fn run_on(driver: &Path, readings: &str, variables: &[(&str, &str)]) -> (Workspace, Printed) {
    let workspace = tiny_model::with_readings(readings);
    let mut command = workspace.flowbench(&["run"]);
    command.envs(tiny_model::on_the_card(driver, &workspace, 2));
    command.envs(variables.iter().copied());
    let printed = run(&mut command);
    assert_eq!(printed.code, 0, "{}", printed.err);
    assert_eq!(crate::schema::problems_of_run(&workspace.record()), [""; 0]);
    (workspace, printed)
}

/// The reasons that the GPU gave. The machine that the tests run on may have some of its own.
fn of_gpu(tainted: &Value) -> Vec<&str> {
    let of_gpu = ["sw_", "hw_", "gpu_", "other_process"];
    let all = tainted.as_array().into_iter().flatten();
    let names = all.filter_map(Value::as_str);
    names
        .filter(|name| *name != "other_processes" && of_gpu.iter().any(|of| name.starts_with(of)))
        .collect()
}

fn sum(values: &[Value]) -> f64 {
    let joules = values.iter().map(|value| value["energy_joules"].as_f64());
    joules.map(|joules| joules.expect("measured")).sum()
}

#[test]
fn steps_carry_what_the_card_said_and_their_share_of_the_energy() {
    let Some(driver) = driver(&[]) else { return };
    // Power limit and heat, and another process.
    let readings = SOUND
        .replace("throttle_reasons=1", "throttle_reasons=0x26")
        .replace("processes=self:1000", "processes=self:1000,4242:5000")
        + "energy_mj=1000000+2500\n";
    let (workspace, printed) = run_on(&driver, &readings, &[]);
    let record = workspace.record();
    let reasons = ["other_process", "sw_power_cap", "sw_thermal"];
    let steps = workspace.steps();
    assert_eq!(steps.len(), 6);
    for step in &steps {
        assert_eq!(of_gpu(&step["tainted"]), reasons, "{step}");
    }
    let workflows = record["workflows"].as_array().expect("two");
    for workflow in workflows {
        assert_eq!(of_gpu(&workflow["tainted"]), reasons);
    }
    let totals = &record["totals"];
    assert_eq!(totals["steps_tainted"], 6);
    for reason in reasons {
        assert_eq!(totals["tainted"][reason], 6, "{totals}");
    }
    let taints = record["validity"]["taints"].as_array().expect("intervals");
    assert!(taints.len() >= 3);
    assert!(
        printed
            .err
            .contains("warning: Steps ran while the machine was disturbed: ")
            && printed.err.contains("(6 of 6 steps: "),
        "{}",
        printed.err
    );

    let energy = &totals["energy"];
    assert_eq!(energy["source"], "nvml_energy_counter");
    let joules = |name: &str| energy[name].as_f64().expect("measured");
    assert!(joules("joules") > 0.0 && joules("watts") > 0.0);
    assert!((sum(&steps) - joules("steps_joules")).abs() < 1e-4);
    assert!((sum(workflows) - joules("steps_joules")).abs() < 1e-4);
    assert!(joules("steps_joules") <= joules("joules") + 1e-9);
    // Steps follow each other at once, so hardly any energy is outside of them.
    assert!(joules("steps_joules") > 0.5 * joules("joules"), "{energy}");
    let tokens = totals["decode_tokens"].as_f64().expect("counted");
    assert!((joules("joules_per_token") * tokens - joules("steps_joules")).abs() < 1e-6);
    assert_eq!(
        energy["joules_per_correct"],
        Value::Null,
        "nothing is judged"
    );

    let page = run(&mut workspace.flowbench(&["report", "-o", "md"]));
    assert_eq!(page.code, 0, "{}", page.err);
    assert!(page.out.contains("nvml"), "{}", page.out);
    let diagnosis = run(&mut workspace.flowbench(&["diagnose"]));
    assert!(
        diagnosis.out.contains("sw_power_cap 6"),
        "{}",
        diagnosis.out
    );
}

#[test]
fn without_a_counter_the_power_is_integrated() {
    let Some(driver) = driver(&[]) else { return };
    let (workspace, printed) = run_on(&driver, SOUND, &[("GPU_POWER", "300")]);
    let record = workspace.record();
    let energy = &record["totals"]["energy"];
    assert_eq!(energy["source"], "nvml_power", "measured, not assumed");
    let watts = energy["watts"].as_f64().expect("measured");
    assert!((watts - 120.0).abs() < 1.0, "{energy}");
    assert!(
        printed.err.contains("W on average by nvml_power, "),
        "{}",
        printed.err
    );
    let steps = workspace.steps();
    assert!(steps.iter().all(|step| of_gpu(&step["tainted"]).is_empty()));
    let validity = &record["validity"];
    let reason = validity["missing"]["energy_millijoules"].as_str();
    assert!(reason.is_some_and(|reason| reason.contains("not available")));
    let series = &validity["series"];
    let points = series["ms"].as_array().expect("points").len();
    assert_eq!(series["power_watts"].as_array().map(Vec::len), Some(points));
    assert!(validity["samples"].as_u64() >= Some(2), "{validity}");
}

#[test]
fn a_card_that_falls_off_the_bus_taints_what_follows() {
    let Some(driver) = driver(&[]) else { return };
    let workspace = tiny_model::with_readings(SOUND);
    let mut command = workspace.child(&[]);
    command.envs(tiny_model::on_the_card(&driver, &workspace, 2));
    command.env("NUM_FLOWS", "120");
    let mut child = command.spawn().expect("starts");
    // Wait until several readings lie between the first step and the present.
    let has_run = |workspace: &Workspace| {
        let folder = std::fs::read_dir(workspace.file("results")).ok()?.next()?;
        let text = std::fs::read_to_string(folder.ok()?.path().join("steps.jsonl")).ok()?;
        let whole = text.lines().take(text.matches('\n').count());
        let starts: Vec<f64> = whole
            .filter_map(|line| serde_json::from_str::<Value>(line).ok()?["start_ms"].as_f64())
            .collect();
        Some(starts.last()? - starts.first()? > 1000.0)
    };
    while has_run(&workspace) != Some(true) {
        assert_eq!(child.try_wait().expect("a child"), None, "ended too early");
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    let lost: String = (SOUND.lines())
        .filter_map(|line| line.split_once('='))
        .map(|(key, _)| format!("{key}=!15\n"))
        .collect();
    // Replaced at once: a reading of half a file would be another one.
    workspace.write("lost.txt", lost);
    std::fs::rename(workspace.file("lost.txt"), workspace.file("nvml.txt")).expect("writable");
    let output = child.wait_with_output().expect("ends");
    let printed = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{printed}");
    assert!(
        printed.contains("warning: The GPU was lost while steps ran: "),
        "{printed}"
    );
    let steps = workspace.steps();
    let is_lost = |step: &Value| of_gpu(&step["tainted"]) == ["gpu_lost"];
    assert!(steps.last().is_some_and(is_lost), "{:?}", steps.last());
    let first = steps.iter().position(is_lost).expect("some");
    assert!(
        first > 0 && steps[first..].iter().all(is_lost),
        "from {first} on"
    );
    let energy = &workspace.record()["totals"]["energy"];
    assert_eq!(energy["source"], "nvml_power", "of the time before");
}

#[test]
fn tainted_flows_are_run_again_once_and_at_most_a_quarter_of_them() {
    let Some(driver) = driver(&[]) else { return };
    let readings = SOUND.replace("throttle_reasons=1", "throttle_reasons=0x4");
    let variables = [("NUM_FLOWS", "5"), ("DISCARD_TAINTED", "1")];
    let (workspace, printed) = run_on(&driver, &readings, &variables);
    assert!(
        printed
            .err
            .contains("[PROGRESS] 5 of 5 flows tainted: running 2 again\n"),
        "{}",
        printed.err
    );
    assert_eq!(printed.out.matches(" (again)\n").count(), 2);
    assert_eq!(printed.out.matches(" rerun=1\n").count(), 6);
    let record = workspace.record();
    let flows = |name: &str| -> Vec<(u64, bool)> {
        let all = record[name].as_array().expect("workflows").iter();
        let flow = |flow: &Value| {
            (
                flow["flow"].as_u64().expect("a number"),
                flow["rerun"] == true,
            )
        };
        all.map(flow).collect()
    };
    let kept = [(1, true), (2, true), (3, false), (4, false), (5, false)];
    assert_eq!(flows("workflows"), kept);
    assert_eq!(flows("discarded"), [(1, false), (2, false)]);
    let totals = &record["totals"];
    assert_eq!(
        (&totals["steps_done"], &totals["workflows_done"]),
        (&15.into(), &5.into())
    );
    assert_eq!(totals["steps_tainted"], 15);
    assert_eq!(totals["positions"][0]["steps"], 5);

    let steps = workspace.steps();
    assert_eq!(steps.len(), 21);
    let discarded: Vec<&Value> = steps
        .iter()
        .filter(|step| step["discarded"] == true)
        .collect();
    assert_eq!(discarded.len(), 6);
    let is_first = |step: &&Value| step["flow"].as_u64() <= Some(2) && step["rerun"] != true;
    assert!(discarded.iter().all(is_first));
    let kept: Vec<Value> = steps
        .iter()
        .filter(|step| step["discarded"] != true)
        .cloned()
        .collect();
    let joules = totals["energy"]["steps_joules"].as_f64().expect("measured");
    assert!((sum(&kept) - joules).abs() < 1e-4);

    // A report, and a script, have each step once.
    let diagnosis = run(&mut workspace.flowbench(&["diagnose", "-o", "json"]));
    let diagnosis: Value = serde_json::from_str(&diagnosis.out).expect("JSON");
    let stages = diagnosis["stages"].as_array().expect("stages");
    let decode = stages.iter().find(|stage| stage["stage"] == "decode");
    assert_eq!(decode.map(|stage| &stage["calls"]), Some(&15.into()));
}

#[test]
fn flows_that_would_be_measured_otherwise_are_not_run_again() {
    let workspace = Workspace::new();
    workspace.write("rows.jsonl", "{\"id\": \"a\", \"task\": \"Look.\"}\n");
    let rows = workspace.file("rows.jsonl").display().to_string();
    let output = ["--input", &rows, "--output", "out.jsonl"];
    let refusals = [
        (Some(("CONCURRENCY", "2")), &[][..], "(CONCURRENCY)"),
        (Some(("MODE", "reuse")), &[], "MODE is reuse"),
        (Some(("MODE", "both")), &[], "MODE is both"),
        (None, &output, "--output has"),
        (None, &["--resume", "latest"], "--resume is given"),
    ];
    for (variable, arguments, reason) in refusals {
        let mut command = workspace.scripted();
        command.env("DISCARD_TAINTED", "1").args(arguments);
        let printed = run(command.envs(variable));
        assert_eq!(printed.code, 2, "{reason}: {}", printed.err);
        assert!(
            printed.err.contains("--discard-tainted is given, but ")
                && printed.err.contains(reason)
                && printed.err.contains("hint: "),
            "{}",
            printed.err
        );
    }
    // An undisturbed run has nothing to run again; a short one is not judged.
    let printed = run(workspace.scripted().env("DISCARD_TAINTED", "1"));
    assert_eq!(printed.code, 0, "{}", printed.err);
    let record = workspace.record();
    assert_eq!(record["discarded"], Value::Null);
    assert_eq!(record["settings"]["discard_tainted"], true);
    assert_eq!(record["totals"]["energy"], Value::Null, "without a model");
}
