//! Checks the source tree against its plan: a module imports from lower floors only, files do not import each other in
//! a cycle, and code that belongs to one module appears in no other. `docs/architecture.md` describes the floors.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use proc_macro2::{TokenStream, TokenTree};
use syn::visit::{self, Visit};

/// The modules of `src/`, from the top floor down. A module imports from lower floors only. Modules of the same floor
/// do not import each other.
const FLOORS: [&[&str]; 7] = [
    &["cli"],
    &["http"],
    &["accounts", "booking", "books", "rollups", "spend_metrics"],
    &["store"],
    &["otlp", "prices"],
    &["identity", "settings"],
    &["clock", "field_error", "json_bounds", "metrics", "randomness", "route_table", "shutdown"],
];

/// The files that may handle transactions by hand: the one that begins and ends snapshots, and the one that rolls back
/// unfinished transactions on connections that return to the pool.
const GUARDS: [&str; 2] = ["store::reading", "store::database"];

/// A source file, named by the path of its module, with what was found in it.
struct File {
    module: String,
    imports: BTreeSet<String>,
    words: BTreeSet<String>,
    texts: Vec<String>,
}

/// Collects the full paths of all `use` items.
#[derive(Default)]
struct Imports(Vec<String>);

impl<'ast> Visit<'ast> for Imports {
    fn visit_item_use(&mut self, item: &'ast syn::ItemUse) {
        spell_out(&item.tree, String::new(), &mut self.0);
        visit::visit_item_use(self, item);
    }
}

fn spell_out(tree: &syn::UseTree, start: String, found: &mut Vec<String>) {
    match tree {
        syn::UseTree::Path(path) => spell_out(&path.tree, format!("{start}{}::", path.ident), found),
        syn::UseTree::Name(name) => found.push(format!("{start}{}", name.ident)),
        syn::UseTree::Rename(rename) => found.push(format!("{start}{}", rename.ident)),
        syn::UseTree::Glob(_) => found.push(start.trim_end_matches(':').to_owned()),
        syn::UseTree::Group(group) => group.items.iter().for_each(|item| spell_out(item, start.clone(), found)),
    }
}

/// Collects all identifiers, all string literals, and all paths that start with `crate` or `super`: in code, in the
/// arguments of macros, and in attributes.
fn scan(tokens: TokenStream, file: &mut File, paths: &mut Vec<String>) {
    let tokens: Vec<TokenTree> = tokens.into_iter().collect();
    let mut at = 0;
    while at < tokens.len() {
        match &tokens[at] {
            TokenTree::Group(group) => {
                let is_documentation =
                    matches!(group.stream().into_iter().next(), Some(TokenTree::Ident(word)) if word == "doc");
                if !is_documentation {
                    scan(group.stream(), file, paths);
                }
            }
            TokenTree::Literal(literal) => {
                if let Ok(syn::Lit::Str(text)) = syn::parse_str(&literal.to_string()) {
                    file.texts.push(text.value());
                }
            }
            TokenTree::Ident(word) => {
                let mut path = word.to_string();
                file.words.insert(path.clone());
                while let Some([TokenTree::Punct(one), TokenTree::Punct(two), TokenTree::Ident(next)]) =
                    tokens.get(at + 1..at + 4)
                    && one.as_char() == ':'
                    && two.as_char() == ':'
                {
                    path = format!("{path}::{next}");
                    file.words.insert(next.to_string());
                    at += 3;
                }
                if path.contains("::") {
                    paths.push(path);
                }
            }
            TokenTree::Punct(_) => {}
        }
        at += 1;
    }
}

/// Parses a file: its module, the modules of this crate that it imports, its identifiers and its string literals.
fn read(module: &str, text: &str) -> File {
    let mut file =
        File { module: module.to_owned(), imports: BTreeSet::new(), words: BTreeSet::new(), texts: Vec::new() };
    let mut imports = Imports::default();
    imports.visit_file(&syn::parse_file(text).unwrap());
    let mut paths = imports.0;
    scan(text.parse().unwrap(), &mut file, &mut paths);
    // The strings of tests may say anything.
    file.texts.clear();
    let code = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or(text);
    scan(code.parse().unwrap(), &mut file, &mut Vec::new());
    file.imports = paths.iter().filter_map(|path| absolute(module, path)).collect();
    file
}

/// Resolves a path to one from the root of the crate; `None` for paths into other crates and into the file itself.
fn absolute(module: &str, path: &str) -> Option<String> {
    if let Some(path) = path.strip_prefix("crate::") {
        return Some(path.to_owned());
    }
    let (mut from, mut rest) = (module, path);
    while let Some(after) = rest.strip_prefix("super::") {
        from = from.rsplit_once("::").map_or("", |(parent, _)| parent);
        rest = after;
    }
    // In the tests of a file, `super` is the file itself. If the guess is too far down, no file has the resulting name,
    // so it does no harm.
    (from.len() < module.len()).then(|| format!("{from}::{rest}").trim_start_matches(':').to_owned())
}

/// Reads every file of `src/`.
fn files() -> Vec<File> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    let mut folders = vec![root.clone()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let name = path.strip_prefix(&root).unwrap().with_extension("");
            let module = name.to_str().unwrap().replace('/', "::");
            if path.extension().is_some_and(|extension| extension == "rs") && module != "main" && module != "lib" {
                files.push(read(&module, &std::fs::read_to_string(&path).unwrap()));
            }
        }
    }
    files
}

/// The files that each file imports, by module.
fn arrows(files: &[File]) -> BTreeMap<&str, BTreeSet<&str>> {
    let modules: BTreeSet<&str> = files.iter().map(|file| file.module.as_str()).collect();
    let file_of = |path: &str| {
        let mut path = path;
        loop {
            if let Some(module) = modules.get(path) {
                return Some(*module);
            }
            path = path.rsplit_once("::")?.0;
        }
    };
    let targets = |file: &File| file.imports.iter().filter_map(|path| file_of(path)).collect::<BTreeSet<_>>();
    files
        .iter()
        .map(|file| (file.module.as_str(), targets(file)))
        .map(|(module, targets)| (module, targets.into_iter().filter(|target| *target != module).collect()))
        .collect()
}

fn top(module: &str) -> &str {
    module.split("::").next().unwrap_or(module)
}

/// Imports of a higher floor, or of another module of the same floor.
fn upward(files: &[File]) -> Vec<String> {
    let floor = |module: &str| FLOORS.iter().position(|floor| floor.contains(&top(module)));
    let mut found = Vec::new();
    for (module, targets) in arrows(files) {
        let Some(own) = floor(module) else {
            found.push(format!("{module} is on no floor"));
            continue;
        };
        let bad =
            targets.iter().filter(|target| top(target) != top(module) && floor(target).is_none_or(|it| it <= own));
        found.extend(bad.map(|target| format!("{module} imports {target}")));
    }
    found
}

/// Groups of files that import each other in a cycle, unless one file is the parent module of all the others.
fn circles(files: &[File]) -> Vec<String> {
    let arrows = arrows(files);
    let reach = |start: &str| {
        let (mut seen, mut next) = (BTreeSet::new(), vec![start.to_owned()]);
        while let Some(module) = next.pop() {
            for target in arrows.get(module.as_str()).into_iter().flatten() {
                if seen.insert((*target).to_owned()) {
                    next.push((*target).to_owned());
                }
            }
        }
        seen
    };
    let reached: BTreeMap<&str, BTreeSet<String>> = arrows.keys().map(|module| (*module, reach(module))).collect();
    let mut found = BTreeSet::new();
    for (module, targets) in &reached {
        let circle: BTreeSet<&str> = reached
            .iter()
            .filter(|(other, back)| targets.contains(**other) && back.contains(*module))
            .map(|(other, _)| *other)
            .collect();
        let is_family =
            |parent: &&&str| circle.iter().all(|other| other == *parent || other.starts_with(&format!("{parent}::")));
        if circle.len() > 1 && circle.iter().find(is_family).is_none() {
            found.insert(circle.into_iter().collect::<Vec<_>>().join(", "));
        }
    }
    found.into_iter().collect()
}

/// Files outside `store` that name the database driver or build SQL statements.
fn sql_outside_store(files: &[File]) -> Vec<String> {
    let outside = files.iter().filter(|file| top(&file.module) != "store");
    let names = |file: &&File| ["sqlx", "QueryBuilder"].iter().any(|word| file.words.contains(*word));
    outside.filter(names).map(|file| file.module.clone()).collect()
}

/// Files other than `cli::output` that write to standard output.
fn output_elsewhere(files: &[File]) -> Vec<String> {
    let others = files.iter().filter(|file| file.module != "cli::output");
    let writes = |file: &&File| ["print", "println", "stdout"].iter().any(|word| file.words.contains(*word));
    others.filter(writes).map(|file| file.module.clone()).collect()
}

/// Statements that begin or end a transaction by hand. `begin_with` of the driver's own transaction does not count.
fn transactions_by_hand(files: &[File]) -> Vec<String> {
    let is_statement = |text: &str| {
        let text = text.trim_start().to_ascii_uppercase();
        let verb: String = text.chars().take_while(char::is_ascii_alphabetic).collect();
        matches!(verb.as_str(), "BEGIN" | "COMMIT" | "ROLLBACK" | "SAVEPOINT") || text.starts_with("START TRANSACTION")
    };
    let owned = |file: &File| {
        let begins_its_own = file.words.contains("begin_with");
        file.texts
            .iter()
            .any(|text| is_statement(text) && !(begins_its_own && text.to_ascii_uppercase().starts_with("BEGIN ISO")))
    };
    let suspects = files.iter().filter(|file| !GUARDS.contains(&file.module.as_str()));
    suspects.filter(|file| owned(file)).map(|file| file.module.clone()).collect()
}

/// Files of handlers that hold the punctuation of JSON: the writer puts that.
fn json_by_hand(files: &[File]) -> Vec<String> {
    let is_handler =
        |file: &&File| ["http::routes", "http::dashboard"].iter().any(|room| file.module.starts_with(room));
    let is_json = |text: &&String| {
        let only_punctuation = !text.is_empty() && text.chars().all(|character| "[]{},:".contains(character));
        (only_punctuation && text.as_str() != "{}")
            || text.contains("\":")
            || text.contains("{\"")
            || text.contains("\"}")
    };
    let found = files
        .iter()
        .filter(is_handler)
        .flat_map(|file| file.texts.iter().filter(is_json).map(move |text| (file, text)));
    found.map(|(file, text)| format!("{}: {text:?}", file.module)).collect()
}

const NONE: [String; 0] = [];

/// Finds violations of a rule.
type Check = fn(&[File]) -> Vec<String>;

/// All checks are one test, because reading the source takes longer than they do.
#[test]
fn the_source_keeps_to_its_plan() {
    let files = files();
    let checks: [(&str, Check); 6] = [
        ("imports go down only", upward),
        ("no files import each other in a circle", circles),
        ("only the store knows the driver", sql_outside_store),
        ("only the output module writes to standard output", output_elsewhere),
        ("only the guards begin and end transactions by hand", transactions_by_hand),
        ("no handler types JSON", json_by_hand),
    ];
    let mut found = Vec::new();
    for (rule, check) in checks {
        found.extend(check(&files).into_iter().map(|violation| format!("{rule}: {violation}")));
    }
    assert_eq!(found, NONE);
}

/// Each check finds the kind of violation that it is meant to find.
#[test]
fn the_checks_find_violations() {
    let up = [read("store::keys", "use crate::http::{error::ApiError};"), read("http::error", "")];
    assert_eq!(upward(&up), ["store::keys imports http::error"]);
    let across = [read("booking", "fn f() { crate::rollups::run() }"), read("rollups", "")];
    assert_eq!(upward(&across), ["booking imports rollups"]);
    let in_macro = [read("settings", "m!(a => crate::store::X);"), read("store", "")];
    assert_eq!(upward(&in_macro), ["settings imports store"]);
    let in_attribute = [read("store::x", "#[derive(A)] #[a(b = crate::cli::C)] struct S;"), read("cli", "")];
    assert_eq!(upward(&in_attribute), ["store::x imports cli"]);
    let fresh = [read("elsewhere", "")];
    assert_eq!(upward(&fresh), ["elsewhere is on no floor"]);

    let circle =
        [read("http::a", "use super::b::B;"), read("http::b", "use crate::http::c;"), read("http::c", "use super::a;")];
    assert_eq!(circles(&circle), ["http::a, http::b, http::c"]);
    let family = [read("http::a", "use crate::http::a::b::B;"), read("http::a::b", "use super::A;")];
    assert_eq!(circles(&family), NONE);
    let siblings = [read("http::a::b", "use super::c::C;"), read("http::a::c", "use super::b::B;")];
    assert_eq!(circles(&siblings), ["http::a::b, http::a::c"]);

    assert_eq!(sql_outside_store(&[read("http::x", "fn f(e: sqlx::Error) {}")]), ["http::x"]);
    assert_eq!(sql_outside_store(&[read("booking", "fn f(q: &mut QueryBuilder) {}")]), ["booking"]);
    assert_eq!(sql_outside_store(&[read("store::x", "use sqlx::Error;")]), NONE);

    assert_eq!(output_elsewhere(&[read("cli::x", "fn f() { println!(\"a\") }")]), ["cli::x"]);
    assert_eq!(output_elsewhere(&[read("cli::x", "fn f() { print!(\"a\") }")]), ["cli::x"]);
    assert_eq!(output_elsewhere(&[read("http::x", "fn f() { std::io::stdout().lock(); }")]), ["http::x"]);
    assert_eq!(output_elsewhere(&[read("cli::x", "fn f() { say!(\"a\"); eprintln!(\"b\") }")]), NONE);
    assert_eq!(output_elsewhere(&[read("cli::output", "fn f() { std::io::stdout().lock(); }")]), NONE);

    for statement in
        ["BEGIN", " begin isolation level serializable", "COMMIT", "rollback to a", "SAVEPOINT a", "START TRANSACTION"]
    {
        let file = read("store::x", &format!("fn f() {{ raw({statement:?}) }}"));
        assert_eq!(transactions_by_hand(&[file]), ["store::x"], "{statement}");
    }
    assert_eq!(transactions_by_hand(&[read("store::x", "/// Begin here.\nfn f() { say(\"beginning\") }")]), NONE);

    let handler = read("http::routes::x", r#"fn f() { raw("],"); raw("\"a\":"); raw("a, b") }"#);
    assert_eq!(json_by_hand(&[handler]), [r#"http::routes::x: "],""#, r#"http::routes::x: "\"a\":""#]);
}
