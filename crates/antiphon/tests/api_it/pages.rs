//! The reference pages are made from the code. UPDATE=1 writes them.

use std::path::Path;

fn check(file: &str, page: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/reference").join(file);
    if std::env::var_os("UPDATE").is_some() {
        std::fs::create_dir_all(path.parent().expect("a folder")).expect("the folder");
        std::fs::write(&path, page).expect("the page");
    }
    let written = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(written == page, "{} is not what the code says: run this test with UPDATE=1", path.display());
}

#[test]
fn the_page_of_the_api_says_what_the_code_does() {
    check("http-api.md", &antiphon::api::page());
}

#[test]
fn the_page_of_the_command_line_says_what_the_code_does() {
    check("cli.md", &antiphon::cli::page());
}
