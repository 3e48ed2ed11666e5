//! The map that readers use is the map of what is there.

use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("a workspace").to_path_buf()
}

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).expect("folder").map_while(Result::ok) {
        let path = entry.path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

#[test]
fn every_module_has_its_line_in_the_map() {
    let root = root();
    let map = std::fs::read_to_string(root.join("docs/architecture.md")).expect("the map");
    let mut missing = Vec::new();
    for package in ["shared", "edge", "cloud"] {
        let source = root.join(package).join("src");
        for entry in std::fs::read_dir(&source).expect("folder").map_while(Result::ok) {
            let name = entry.file_name().to_string_lossy().into_owned();
            let module = name.trim_end_matches(".rs");
            if !["lib", "main"].contains(&module)
                && !map.contains(&format!("`{package}::{module}`"))
            {
                missing.push(format!("{package}::{module}"));
            }
        }
    }
    assert_eq!(missing, Vec::<String>::new(), "not in docs/architecture.md");
}

#[test]
fn every_file_opens_with_what_it_holds() {
    let root = root();
    let mut files = Vec::new();
    for package in ["shared", "edge", "cloud", "tests"] {
        sources(&root.join(package), &mut files);
    }
    let silent: Vec<_> = files
        .iter()
        .filter(|path| !std::fs::read_to_string(path).expect("file").starts_with("//!"))
        .collect();
    assert!(silent.is_empty(), "no `//!` contract: {silent:?}");
}

#[test]
fn heads_do_not_see_each_other_and_engines_do_not_see_protocols() {
    let cloud = root().join("cloud/src");
    let heads = ["bridge", "mqtt", "kafka", "amqp"];
    let mut wrong = Vec::new();
    for module in ["bridge", "mqtt", "kafka", "amqp", "log", "engine", "group", "queue"] {
        let mut files = Vec::new();
        sources(&cloud.join(module), &mut files);
        for file in files {
            let text = std::fs::read_to_string(&file).expect("file");
            for head in heads.into_iter().filter(|head| *head != module) {
                // A head's own state machine may stand in a sibling folder of its own (group, queue).
                if text.contains(&format!("crate::{head}::"))
                    || text.contains(&format!("crate::{head};"))
                {
                    wrong.push(format!("{} names {head}", file.display()));
                }
            }
        }
    }
    assert_eq!(wrong, Vec::<String>::new());
}
