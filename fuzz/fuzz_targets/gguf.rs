#![no_main]

flowbench_fuzz::target!("gguf");
