//! GPUs that cannot be used, on the simulated one (`tests/simgpu`): each cause has its own error, with both
//! numbers, a hint and exit code 3; and `DEVICE=cuda` never runs on the CPU.

use std::path::{Path, PathBuf};

use crate::common::{Printed, Workspace, run};
use crate::simgpu::driver;
use crate::tiny_model;

/// `flowbench` with these arguments and variables, on the simulated driver.
fn on(driver: &PathBuf, arguments: &[&str], variables: &[(&str, &str)]) -> Printed {
    let workspace = Workspace::new();
    let mut command = workspace.flowbench(arguments);
    command
        .env("LD_LIBRARY_PATH", driver)
        .env("DEVICE", "cuda")
        .envs(variables.iter().copied());
    run(&mut command)
}

#[track_caller]
fn refused(driver: &PathBuf, variables: &[(&str, &str)], expected: &str) {
    let mut all = vec![("MODE", "standalone"), ("TEMPLATE", "chain")];
    all.extend(variables);
    let printed = on(driver, &["run"], &all);
    assert_eq!(printed.code, 3, "{}", printed.err);
    assert!(printed.err.contains(expected), "{}", printed.err);
    assert!(printed.err.contains("hint: "), "{}", printed.err);
    assert!(!printed.err.contains("panicked"), "{}", printed.err);
}

#[test]
fn drivers_and_cards_that_cannot_be_used() {
    let Some(driver) = driver(&[]) else { return };
    for (variables, expected) in [
        (
            &[("SIMGPU_DRIVER", "11.8")],
            "error: the NVIDIA driver is too old: it implements CUDA 11.8, and the kernels need CUDA 12.1\n",
        ),
        (
            &[("SIMGPU_CAPABILITY", "7.0")],
            "error: Simulated GPU is too old: it has compute capability 7.0, and the kernels need 7.5\n",
        ),
        (
            &[("CUDA_VISIBLE_DEVICES", "")],
            "error: no GPU is visible: CUDA_VISIBLE_DEVICES is empty",
        ),
        (
            &[("CUDA_VISIBLE_DEVICES", "7")],
            "error: no GPU is visible: CUDA_VISIBLE_DEVICES is `7`, and the machine has 1 GPU\n",
        ),
        (
            &[("SIMGPU_FAIL", "cuInit:1:803")],
            "error: the NVIDIA driver (CUDA 12.8) does not start\n",
        ),
        (
            &[("BACKEND", "candle")],
            "error: BACKEND=candle computes on the CPU only\nhint: set DEVICE=cpu",
        ),
    ] {
        refused(&driver, variables, expected);
    }
}

#[test]
fn a_driver_that_lacks_a_function() {
    let Some(driver) = driver(&["--omit", "cuGraphLaunch"]) else {
        return;
    };
    let old = "error: the NVIDIA driver lacks the function cuGraphLaunch: it implements CUDA 11.4, and CUDA 12.1 or later is needed\nhint: install the NVIDIA driver 530";
    refused(&driver, &[("SIMGPU_DRIVER", "11.4")], old);
    let damaged = "hint: libcuda.so.1 seems to be damaged";
    refused(&driver, &[], damaged);
}

#[test]
fn doctor_describes_the_card() {
    let Some(driver) = driver(&[]) else { return };
    let line = |variables: &[(&str, &str)]| {
        let printed = on(&driver, &["doctor"], variables);
        let lines = printed.out.lines().chain(printed.err.lines());
        let mut gpu = lines.filter(|line| line.contains("  gpu  "));
        gpu.next().expect("a line on the GPU").to_owned()
    };
    let sound = line(&[]);
    assert!(
        sound.starts_with("ok    gpu        Simulated GPU at "),
        "{sound}"
    );
    assert!(
        sound.contains("4.0 GiB, compute capability 9.0, driver"),
        "{sound}"
    );
    assert!(
        sound.contains("(CUDA 12.8); needed: NVIDIA driver 530 (CUDA 12.1)"),
        "{sound}"
    );
    let old = line(&[("SIMGPU_CAPABILITY", "6.1")]);
    assert!(
        old.starts_with("fail  gpu        Simulated GPU is too old"),
        "{old}"
    );
}

/// `flowbench run` of the default model on the simulated driver, with a fault of the driver.
fn with_fault(driver: &PathBuf, fault: &str) -> Option<(Workspace, Printed)> {
    let model = crate::common::model()?;
    let workspace = Workspace::new();
    let mut command = workspace.flowbench(&["run"]);
    command
        .env("LD_LIBRARY_PATH", driver)
        .env("MODEL", model)
        .env("SIMGPU_FAIL", fault)
        .envs([
            ("DEVICE", "cuda"),
            ("MODE", "standalone"),
            ("TEMPLATE", "chain"),
            ("NUM_FLOWS", "1"),
            ("KV_CACHE_MB", "16"),
        ]);
    let printed = run(&mut command);
    Some((workspace, printed))
}

#[test]
fn memory_that_runs_out_while_weights_are_copied() {
    let Some(driver) = driver(&[]) else { return };
    // CUDA_ERROR_OUT_OF_MEMORY
    let Some((_, printed)) = with_fault(&driver, "cuMemAlloc_v2:100:2") else {
        return;
    };
    assert_eq!(printed.code, 3, "{}", printed.err);
    for expected in ["the weights take 92.0 MiB", "4.0 GiB are free", "hint: "] {
        assert!(printed.err.contains(expected), "{}", printed.err);
    }
}

#[test]
fn a_gpu_that_is_lost_in_a_run_leaves_a_record() {
    let Some(driver) = driver(&[]) else { return };
    // CUDA_ERROR_LAUNCH_FAILED, in the first decode pass after the warm-up.
    let Some((workspace, printed)) = with_fault(&driver, "cuGraphLaunch:2:719") else {
        return;
    };
    assert_eq!(printed.code, 100, "{}", printed.err);
    assert!(printed.err.contains("the GPU is lost"), "{}", printed.err);
    assert!(!printed.err.contains("panicked"), "{}", printed.err);
    let record = workspace.record();
    assert_eq!(record["status"], "incomplete");
    assert_eq!(record["engine"]["device"]["name"], "Simulated GPU");
    assert!(record["engine"]["jit_ms"].is_number());
    assert!(
        record["gpu"]["end"].is_object(),
        "read however the flows end"
    );
}

/// `flowbench run` of a tiny model on the simulated driver.
fn tiny(driver: &Path, variables: &[(&str, &str)]) -> (Workspace, Printed) {
    let workspace = Workspace::new();
    tiny_model::write(&workspace.file("tiny.gguf"));
    let mut command = workspace.flowbench(&["run"]);
    command
        .env("LD_LIBRARY_PATH", driver)
        .env("MODEL", workspace.file("tiny.gguf"))
        .envs([
            ("DEVICE", "cuda"),
            ("MODE", "standalone"),
            ("TEMPLATE", "chain"),
            ("NUM_FLOWS", "1"),
            ("KV_CACHE_MB", "4"),
            ("IGNORE_EOS", "1"),
        ])
        .envs(variables.iter().copied());
    let printed = run(&mut command);
    (workspace, printed)
}

#[test]
fn an_engine_that_does_not_start_on_the_card() {
    let Some(driver) = driver(&[]) else { return };
    for (variables, expected) in [
        (
            // CUDA_ERROR_UNSUPPORTED_PTX_VERSION
            &[("SIMGPU_FAIL", "cuModuleLoadDataEx:1:222")],
            &[
                "failed to load the kernels, PTX 8.1",
                "install the NVIDIA driver 530",
            ][..],
        ),
        (
            // CUDA_ERROR_NO_BINARY_FOR_GPU
            &[("SIMGPU_FAIL", "cuModuleLoadDataEx:1:209")],
            &["failed to load the kernels, PTX 8.1", "hint: "],
        ),
        (
            &[("KV_CACHE_MB", "100000")],
            &["97.7 GiB of keys and values", "4.0 GiB are free", "hint: "],
        ),
    ] {
        let (_, printed) = tiny(&driver, variables);
        assert_eq!(printed.code, 3, "{variables:?}: {}", printed.err);
        for expected in expected {
            assert!(
                printed.err.contains(expected),
                "{variables:?}: {}",
                printed.err
            );
        }
        assert!(!printed.err.contains("panicked"), "{}", printed.err);
    }
}

/// Memory that is short when a graph is recorded: the run goes on without graphs, and with the same tokens.
#[test]
fn memory_that_runs_out_in_a_pass_is_recorded() {
    let Some(driver) = driver(&[]) else { return };
    let hashes = |workspace: &Workspace| -> Vec<serde_json::Value> {
        let steps = workspace.steps();
        steps.iter().map(|step| step["out_hash"].clone()).collect()
    };
    let (workspace, printed) = tiny(&driver, &[]);
    assert_eq!(printed.code, 0, "{}", printed.err);
    let expected = hashes(&workspace);
    let (workspace, printed) = tiny(
        &driver,
        &[("SIMGPU_FAIL", "cuGraphInstantiateWithFlags:1:2")],
    );
    assert_eq!(printed.code, 0, "{}", printed.err);
    assert_eq!(hashes(&workspace), expected);
    let record = workspace.record();
    let shortages = &record["totals"]["memory_shortages"];
    assert_eq!(shortages.as_array().map(Vec::len), Some(1), "{shortages}");
    assert_eq!(shortages[0]["admitted"], 1);
    let error = shortages[0]["error"].as_str().expect("an error");
    assert!(error.contains("CUDA_ERROR_OUT_OF_MEMORY"), "{error}");
    assert!(
        printed.err.contains("The GPU's memory ran out in a pass"),
        "{}",
        printed.err
    );
    assert_eq!(record["warnings"][0]["code"], "gpu_memory");
}

/// The lines of a profile that are the device's.
#[test]
fn a_profile_has_the_devices_times() {
    let Some(driver) = driver(&[]) else { return };
    let (workspace, printed) = tiny(&driver, &[("PROFILE", "1")]);
    assert_eq!(printed.code, 0, "{}", printed.err);
    let record = workspace.record();
    assert_eq!(record["profile"]["device"]["name"], "Simulated GPU");
    let phases = record["profile"]["device"]["phases"]
        .as_array()
        .expect("phases");
    let names: Vec<_> = phases.iter().map(|phase| phase["phase"].clone()).collect();
    assert_eq!(names, ["prefill", "decode"]);
    let diagnosis = run(&mut workspace.flowbench(&["diagnose"]));
    assert!(
        diagnosis.out.contains("## Device time of Simulated GPU"),
        "{}",
        diagnosis.out
    );
}

#[test]
fn settings_of_the_gpu_are_checked() {
    for (variable, value) in [
        ("GPU_MEMORY_UTILIZATION", "1.5"),
        ("GPU_MEMORY_UTILIZATION", "0"),
        ("GPU_MEMORY_UTILIZATION", "NaN"),
        ("CUDA_GRAPHS", "maybe"),
    ] {
        let workspace = Workspace::new();
        let printed = run(workspace.flowbench(&["run"]).env(variable, value));
        assert_eq!(printed.code, 2, "{variable}={value}: {}", printed.err);
        assert!(printed.err.contains(value), "{}", printed.err);
    }
}
