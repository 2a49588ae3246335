#![no_main]

flowbench_fuzz::target!("safetensors");
