//! Where settings come from, what is said about bad ones, and the file that explains them.

use super::*;

crate::settings! {
    /// Test program.
    pub struct Program {
        /// Its name.
        pub id: Option<String> = None,
        /// How often.
        pub times: u32 = 3 => 1..=9,
        /// The inner part.
        pub part: Part = Part::default(),
        /// Its lanes.
        pub lanes: Vec<Lane> = vec![Lane::default()],
    }
}

crate::settings! {
    /// A part.
    pub struct Part {
        /// Text.
        pub text: String = "x".to_owned(),
        /// Bytes,
        /// two lines.
        pub bytes: u64 = 1024,
        /// Words.
        pub words: Vec<String> = vec!["a".to_owned(), "b".to_owned()],
        /// Deeper.
        pub deep: Lane = Lane::default(),
    }
}

crate::settings! {
    /// A lane.
    pub struct Lane {
        /// What it is called.
        pub name: String = "normal".to_owned(),
        /// Limit.
        pub limit: u8 = 1 => 1..,
    }
}

fn file(text: &str) -> (tempdir::Dir, std::path::PathBuf) {
    let dir = tempdir::Dir::new();
    let path = dir.0.join("settings.toml");
    std::fs::write(&path, text).unwrap();
    (dir, path)
}

/// A folder that goes when its test ends.
mod tempdir {
    pub(super) struct Dir(pub(super) std::path::PathBuf);

    impl Dir {
        pub(super) fn new() -> Self {
            let name = format!("tributary-config-{:016x}", getrandom::u64().unwrap());
            let path = std::env::temp_dir().join(name);
            std::fs::create_dir(&path).unwrap();
            Self(path)
        }
    }

    impl Drop for Dir {
        fn drop(&mut self) {
            drop(std::fs::remove_dir_all(&self.0));
        }
    }
}

fn vars(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

#[test]
fn a_flag_beats_the_environment_and_that_beats_the_file() {
    let (_dir, path) = file("times = 4\n[part]\ntext = 'file'\nbytes = 5\n[[lanes]]\nname = 'one'");
    let settings: Program = Loader::new()
        .file(&path)
        .unwrap()
        .variables(vars(&[
            ("TRIBUTARY_PART__BYTES", "6"),
            ("TRIBUTARY_PART__TEXT", "17"),
            ("TRIBUTARY_PART__WORDS", "['c']"),
            ("TRIBUTARY_ID", "12"),
            ("TRIBUTARY_PART__DEEP__NAME", "deep"),
            ("PATH", "/bin"),
        ]))
        .unwrap()
        .flag("--bytes", "part.bytes", Some(7))
        .unwrap()
        .flag("--times", "times", None::<u32>)
        .unwrap()
        .pairs("--set", &["part.deep.limit=9".to_owned()])
        .unwrap()
        .load()
        .unwrap();
    assert_eq!(settings.part.deep.limit, 9);
    assert_eq!(settings.times, 4);
    assert_eq!(settings.id.as_deref(), Some("12"));
    assert_eq!(settings.part.text, "17", "a string whatever it looks like");
    assert_eq!(settings.part.bytes, 7);
    assert_eq!(settings.part.words, ["c"]);
    assert_eq!(settings.part.deep.name, "deep");
    assert_eq!(settings.lanes, [Lane { name: "one".to_owned(), ..Lane::default() }]);
}

#[test]
fn without_sources_everything_is_at_its_default() {
    assert_eq!(Loader::<Program>::new().load().unwrap(), Program::default());
}

fn file_error(text: &str) -> String {
    let (_dir, path) = file(text);
    Loader::<Program>::new().file(&path).unwrap_err().to_string()
}

fn says(error: &str, parts: &[&str]) {
    for part in parts {
        assert!(error.contains(part), "`{part}` is not in: {error}");
    }
}

#[test]
fn an_error_names_the_key_where_it_stands_and_what_is_allowed() {
    says(&file_error("[part]\nbites = 1"), &["settings.toml", "line 2", "`bites`", "`bytes`"]);
    says(&file_error("times = 'often'"), &["settings.toml", "times", "expected u32"]);
    says(&file_error("times = 10"), &["settings.toml", "`times` = 10", "1..=9"]);
    says(&file_error("[[lanes]]\nlimit = 0"), &["`lanes.limit` = 0", "1.."]);
    says(&file_error("[part.deep]\nlimit = 0"), &["`part.deep.limit` = 0"]);
    says(&file_error("times = "), &["settings.toml", "line 1"]);
    let missing = Loader::<Program>::new().file(std::path::Path::new("/no/such/file.toml"));
    says(&missing.unwrap_err().to_string(), &["/no/such/file.toml"]);

    let variable = |name: &str, value: &str| {
        Loader::<Program>::new().variables(vars(&[(name, value)])).unwrap_err().to_string()
    };
    says(&variable("TRIBUTARY_PART__BITES", "1"), &["TRIBUTARY_PART__BITES", "`bites`", "`bytes`"]);
    says(&variable("TRIBUTARY_PART__BYTES", "-1"), &["TRIBUTARY_PART__BYTES", "u64"]);
    says(&variable("TRIBUTARY_TIMES", "0"), &["TRIBUTARY_TIMES", "`times` = 0", "1..=9"]);
    let flag = Loader::<Program>::new().flag("--times", "times", Some("x")).unwrap_err();
    says(&flag.to_string(), &["--times", "u32"]);
    let pair = |pair: &str| {
        Loader::<Program>::new().pairs("--set", &[pair.to_owned()]).unwrap_err().to_string()
    };
    says(&pair("part.bytes"), &["--set part.bytes", "key=value"]);
    says(&pair("part.bites=1"), &["--set part.bites=1", "`bites`"]);
    says(&pair("times.x=1"), &["--set times.x=1", "u32"]);
}

#[test]
fn the_reference_holds_every_key_and_its_values_are_the_defaults() {
    let text = reference::<Program>("test-program");
    says(
        &text,
        &[
            "# Test program.\n",
            "# Its name.\n#id =    # not set\n",
            "# How often.\n# Allowed: 1..=9.\n#times = 3\n",
            "\n# The inner part.\n[part]\n\n# Text.\n#text = \"x\"\n",
            "# Bytes,\n# two lines.\n#bytes = 1024\n",
            "#words = [\"a\", \"b\"]\n",
            "# Deeper.\n[part.deep]\n",
            "# Its lanes.\n# One section an entry",
            "#   limit: Limit.\n",
            "#[[lanes]]\n",
        ],
    );
    assert_eq!(toml::from_str::<Program>(&text).unwrap(), Program::default());
    let plain: String = text
        .lines()
        .filter(|line| !line.contains("not set"))
        .map(|line| line.strip_prefix('#').filter(|rest| !rest.starts_with(' ')).unwrap_or(line))
        .flat_map(|line| [line, "\n"])
        .collect();
    assert_eq!(toml::from_str::<Program>(&plain).unwrap(), Program::default());
}

#[test]
fn a_stale_reference_is_told() {
    let (_dir, path) = file("old");
    says(&is_current(&path, "new").unwrap_err(), &["settings.toml", "scripts/fix"]);
    is_current(&path, "old").unwrap();
}
