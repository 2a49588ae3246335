//! The layer table of `docs/architecture.md` holds: modules import from lower layers only, and the files of
//! a room do not need each other in a cycle.
//!
//! This reads the source text: `use` declarations and inline paths that begin with `crate`, `super` or
//! `self`. Tests (`#[cfg(test)]` items, and the files of modules so declared) do not count.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};

/// Cycles that stay, by the module that holds their files, each with its reason. At most two.
const ALLOWED_CYCLES: &[(&str, &str)] = &[(
    "engine::chat::jinja",
    "an interpreter is recursive: values, filters, methods and expressions evaluate each other",
)];

/// Files that read the clock, each with its reason. At most two.
const CLOCK_READERS: &[(&str, &str)] = &[
    (
        "src/stopwatch.rs",
        "where everything else gets its times from",
    ),
    (
        "crates/kernels/src/pool.rs",
        "the kernels know nothing of this program, and a spin of microseconds is no reported time",
    ),
];

type Module = Vec<String>;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn rust_files(folder: &Path) -> Vec<PathBuf> {
    let files = walkdir::WalkDir::new(folder).into_iter().flatten();
    let files = files.map(walkdir::DirEntry::into_path);
    let mut files: Vec<PathBuf> = files
        .filter(|path| path.extension().is_some_and(|kind| kind == "rs"))
        .collect();
    files.sort();
    files
}

/// `src/flow/mod.rs` is `flow`, `src/flow/cache.rs` is `flow::cache`.
fn module_of(file: &Path) -> Module {
    let relative = file.strip_prefix(root().join("src")).expect("in src");
    let mut names: Module = relative
        .with_extension("")
        .iter()
        .map(|name| name.to_string_lossy().into_owned())
        .collect();
    if names
        .last()
        .is_some_and(|name| name == "mod" || name == "lib")
    {
        names.pop();
    }
    names
}

/// The text without comments and without the contents of string literals.
fn code_of(text: &str) -> String {
    let mut code = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let raw = rest.strip_prefix('r').map(|after| {
            let hashes = after.len() - after.trim_start_matches('#').len();
            (hashes, after[hashes..].starts_with('"'))
        });
        let starts_word = !code.ends_with(|c: char| c.is_alphanumeric() || c == '_');
        let skipped = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if rest.starts_with("/*") {
            rest.find("*/").map_or(rest.len(), |end| end + 2)
        } else if let Some((hashes, true)) = raw
            && starts_word
        {
            let end = format!("\"{}", "#".repeat(hashes));
            let start = hashes + 2;
            let length = rest[start..].find(&end).map(|at| at + end.len());
            start + length.unwrap_or(rest.len() - start)
        } else if first == '"' {
            let mut escaped = false;
            let mut inside = rest.char_indices().skip(1);
            let end = inside.find(|(_, c)| {
                let ends = *c == '"' && !escaped;
                escaped = *c == '\\' && !escaped;
                ends
            });
            end.map_or(rest.len(), |(at, _)| at + 1)
        } else if rest.starts_with("'\"'") || rest.starts_with("'{'") || rest.starts_with("'}'") {
            3
        } else {
            0
        };
        if skipped > 0 {
            code.push(' ');
            rest = &rest[skipped..];
        } else {
            code.push(first);
            rest = &rest[first.len_utf8()..];
        }
    }
    code
}

/// The code without items under `#[cfg(test)]`, and the names of modules declared under it.
fn without_tests(code: &str) -> (String, Vec<String>) {
    let mut kept = String::with_capacity(code.len());
    let mut modules = Vec::new();
    let mut rest = code;
    let attributes = ["#[cfg(test)]", "#[cfg(all(test", "#[cfg(any(test"];
    while let Some(start) = attributes.iter().filter_map(|name| rest.find(name)).min() {
        kept.push_str(&rest[..start]);
        let item = &rest[start..];
        let mut depth = 0;
        let end = item.char_indices().find(|(_, c)| match c {
            '{' => {
                depth += 1;
                false
            }
            '}' => {
                depth -= 1;
                depth <= 0
            }
            ';' | ',' => depth == 0 && *c == ';',
            _ => false,
        });
        let end = end.map_or(item.len(), |(at, _)| at + 1);
        let declared = item[..end].trim_end_matches(';').rsplit_once("mod ");
        let name = declared.map(|(_, name)| name.trim());
        modules.extend(name.filter(|name| !name.contains(' ')).map(str::to_owned));
        rest = &item[end..];
    }
    kept.push_str(rest);
    (kept, modules)
}

/// The paths of a `use` tree.
fn expand(tree: &str, paths: &mut Vec<String>) {
    let Some((prefix, inner)) = tree.split_once('{') else {
        paths.push(tree.to_owned());
        return;
    };
    let inner = inner.strip_suffix('}').unwrap_or(inner);
    let mut depth = 0;
    let mut start = 0;
    for (at, c) in inner.char_indices() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                expand(&format!("{prefix}{}", &inner[start..at]), paths);
                start = at + 1;
            }
            _ => {}
        }
    }
    if start < inner.len() {
        expand(&format!("{prefix}{}", &inner[start..]), paths);
    }
}

/// Every path in the code that begins in this crate.
fn paths_in(code: &str) -> Vec<String> {
    let mut paths = Vec::new();
    for root in ["crate", "super", "self", "flowbench"] {
        for (at, _) in code.match_indices(&format!("{root}::")) {
            let before = code[..at].chars().next_back();
            if before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == ':' || c == '$') {
                continue;
            }
            let is_use = code[..at].trim_end().ends_with("use");
            let is_end = |c: char| match is_use {
                true => c == ';',
                false => !(c.is_alphanumeric() || c == '_' || c == ':'),
            };
            let length = code[at..].find(is_end).unwrap_or(code.len() - at);
            let tree: String = code[at..at + length].split_whitespace().collect();
            expand(&tree, &mut paths);
        }
    }
    paths
}

/// The module that a path of `module` names, as deep as there are files.
fn resolve(module: &Module, path: &str, known: &BTreeSet<Module>) -> Option<Module> {
    let mut base = module.clone();
    let mut names = path.split("::").peekable();
    while let Some(name) = names.peek() {
        match *name {
            "crate" | "flowbench" => base.clear(),
            "super" => drop(base.pop()),
            "self" => {}
            _ => break,
        }
        names.next();
    }
    base.extend(names.map(str::to_owned));
    while !known.contains(&base) {
        base.pop()?;
    }
    Some(base)
}

/// For each module, the modules that it imports from.
fn imports() -> BTreeMap<Module, BTreeSet<Module>> {
    let mut sources = BTreeMap::new();
    let mut tests = Vec::new();
    for file in rust_files(&root().join("src")) {
        let module = module_of(&file);
        let text = fs::read_to_string(&file).expect("readable");
        let (code, test_modules) = without_tests(&code_of(&text));
        tests.extend(test_modules.into_iter().map(|name| {
            let mut module = module.clone();
            module.push(name);
            module
        }));
        sources.insert(module, code);
    }
    sources.retain(|module, _| !tests.iter().any(|test| module.starts_with(test)));
    let known: BTreeSet<Module> = sources.keys().cloned().collect();
    let imports_of = |(module, code): (&Module, &String)| {
        let paths = paths_in(code);
        let targets = paths
            .iter()
            .filter_map(|path| resolve(module, path, &known));
        let targets = targets.filter(|target| target != module && !target.is_empty());
        (module.clone(), targets.collect())
    };
    sources.iter().map(imports_of).collect()
}

/// The layer of each top-level module: the numbered lines of the first code block after `## Layers`.
fn layers() -> BTreeMap<String, usize> {
    let text = fs::read_to_string(root().join("docs/architecture.md")).expect("there");
    let (_, section) = text.split_once("## Layers").expect("the section");
    let block = section.split("```").nth(1).expect("the table");
    let mut layers = BTreeMap::new();
    for line in block.lines().filter(|line| !line.trim().is_empty()) {
        let mut words = line.split_whitespace();
        let Some(Ok(layer)) = words.next().map(str::parse) else {
            continue;
        };
        layers.extend(words.map(|module| (module.to_owned(), layer)));
    }
    layers
}

#[test]
fn modules_import_from_lower_layers_only() {
    let layers = layers();
    let mut problems = Vec::new();
    for (module, targets) in imports() {
        let Some(from) = module.first() else { continue };
        let Some(layer) = layers.get(from) else {
            problems.push(format!("{from} is not in the layer table"));
            continue;
        };
        for to in targets.iter().filter_map(|target| target.first()) {
            if to != from && layers.get(to).is_none_or(|below| below >= layer) {
                let module = module.join("::");
                problems.push(format!("{module} imports {to}, which is not below {from}"));
            }
        }
    }
    let modules: BTreeSet<String> = imports()
        .keys()
        .filter_map(|m| m.first().cloned())
        .collect();
    for module in layers.keys().filter(|module| !modules.contains(*module)) {
        problems.push(format!(
            "the layer table has {module}, which does not exist"
        ));
    }
    assert!(problems.is_empty(), "{}", problems.join("\n"));
}

/// Modules that reach each other. A module may use what its ancestors declare: they are where its room is
/// entered, and not counted as imports.
fn cycles() -> Vec<Vec<String>> {
    let imports = imports();
    let next = |module: &Module| -> BTreeSet<Module> {
        let targets = imports.get(module).into_iter().flatten();
        targets
            .filter(|target| !module.starts_with(target))
            .cloned()
            .collect()
    };
    let reach: BTreeMap<&Module, BTreeSet<Module>> = (imports.keys())
        .map(|module| {
            let mut seen = BTreeSet::new();
            let mut open: Vec<Module> = next(module).into_iter().collect();
            while let Some(module) = open.pop() {
                if seen.insert(module.clone()) {
                    open.extend(next(&module));
                }
            }
            (module, seen)
        })
        .collect();
    let mut cycles = BTreeSet::new();
    for (module, reached) in &reach {
        let back = reached
            .iter()
            .filter(|other| reach[other].contains(*module));
        let cycle: Vec<String> = back.map(|module| module.join("::")).collect();
        if cycle.len() > 1 {
            cycles.insert(cycle);
        }
    }
    cycles.into_iter().collect()
}

#[test]
fn files_of_a_room_do_not_need_each_other_in_a_cycle() {
    assert!(ALLOWED_CYCLES.len() <= 2);
    let is_allowed = |cycle: &Vec<String>| {
        let holds = |room: &str| cycle.iter().all(|module| module.starts_with(room));
        ALLOWED_CYCLES.iter().any(|(room, _)| holds(room))
    };
    let cycles = cycles();
    let new: Vec<String> = (cycles.iter())
        .filter(|cycle| !is_allowed(cycle))
        .map(|cycle| cycle.join(", "))
        .collect();
    assert!(new.is_empty(), "cycles between:\n{}", new.join("\n"));
    for (room, _) in ALLOWED_CYCLES {
        let is_used = cycles
            .iter()
            .flatten()
            .any(|module| module.starts_with(room));
        assert!(
            is_used,
            "{room} has no cycle any more: take it off the list"
        );
    }
}

#[test]
fn stopwatch_reads_the_clock_for_everyone() {
    assert!(CLOCK_READERS.len() <= 2);
    let is_allowed = |file: &Path| {
        let allowed = CLOCK_READERS.iter().map(|(name, _)| *name);
        allowed.into_iter().any(|name| file.ends_with(name))
    };
    let sources = ["src", "crates"].map(|folder| rust_files(&root().join(folder)));
    let is_test = |name: &OsStr| name == "tests" || name == "tests.rs" || name == "benches";
    let readers: Vec<String> = (sources.into_iter().flatten())
        .filter(|file| !file.iter().any(is_test) && !is_allowed(file))
        .filter(|file| {
            let text = fs::read_to_string(file).expect("readable");
            without_tests(&code_of(&text)).0.contains("Instant::now")
        })
        .map(|file| file.display().to_string())
        .collect();
    assert!(readers.is_empty(), "use stopwatch: {}", readers.join(", "));
}
