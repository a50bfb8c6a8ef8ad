//! From uploaded files to planned and loaded examples: what labels may look like, what is refused with which field and lines.
#![allow(clippy::unwrap_used)]

mod support;

use parquet::file::properties::WriterProperties;
use serde_json::{Value, json};
use support::{Column, Upload, parquet};
use tunesmith_data::{ClassificationColumns, Example, Plan, PlanError, ProblemType, Target, overlap, plan};

fn jsonl(labels: &[Value]) -> Upload {
    let row = |(index, label)| format!("{}\n", json!({"text": format!("t{index}"), "label": label}));
    Upload::new("a.jsonl", labels.iter().enumerate().map(row).collect::<String>())
}

fn csv(labels: &[&str]) -> Upload {
    let row = |(index, label)| format!("t{index},{label}\n");
    let rows: String = labels.iter().enumerate().map(row).collect();
    Upload::new("a.csv", format!("text,label\n{rows}"))
}

fn plan_pair(train: &Upload, eval: &Upload) -> Result<Plan, PlanError> {
    let cols = ClassificationColumns::default();
    plan(&train.summary(), Some(&eval.summary()), &cols, None, None)
}

fn plan_named(train: &Upload, labels: &[&str]) -> Result<Plan, PlanError> {
    let labels: Vec<String> = labels.iter().map(ToString::to_string).collect();
    plan(&train.summary(), None, &ClassificationColumns::default(), Some(&labels), None)
}

fn targets(examples: &[Example]) -> Vec<Target> {
    examples.iter().map(|example| example.target.clone()).collect()
}

fn refusal(result: Result<Plan, PlanError>, param: &str) -> String {
    let error = result.unwrap_err();
    assert_eq!(error.param, param, "{error}");
    error.to_string()
}

#[test]
fn data_label_types_a_integers_are_the_same_classes_in_every_format() {
    let ids: Vec<i64> = (0..12).rev().collect();
    let names: Vec<String> = ids.iter().map(i64::to_string).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let floats: Vec<String> = names.iter().map(|name| format!("{name}.0")).collect();
    let floats: Vec<&str> = floats.iter().map(String::as_str).collect();
    let texts = ["t"; 12];
    let table = |label| {
        let columns = [("text", Column::Text(&texts)), ("label", label)];
        Upload::new("a.parquet", parquet(WriterProperties::default(), &[&columns]))
    };
    let mut expected = None;
    for upload in [
        csv(&names),
        csv(&floats),
        jsonl(&ids.iter().map(|id| json!(id)).collect::<Vec<_>>()),
        table(Column::Ints(&ids)),
        table(Column::Text(&names)),
    ] {
        let plan = upload.plan().unwrap();
        assert_eq!(plan.problem_type, ProblemType::SingleLabel);
        assert_eq!(plan.labels, (0..12).map(|id| id.to_string()).collect::<Vec<_>>());
        let targets = targets(&upload.load(&plan));
        assert_eq!(targets[0], Target::Class(11));
        assert_eq!(*expected.get_or_insert_with(|| targets.clone()), targets);
    }
}

#[test]
fn data_label_types_b_a_number_and_its_string_are_one_class() {
    let upload = jsonl(&[json!(1), json!("1"), json!(0)]);
    let plan = upload.plan().unwrap();
    assert_eq!(plan.labels, ["0", "1"]);
    assert_eq!(targets(&upload.load(&plan)), [Target::Class(1), Target::Class(1), Target::Class(0)]);
    let one = refusal(jsonl(&[json!(1), json!("1")]).plan(), "training_file");
    assert!(one.contains("\"1\""), "{one}");
}

#[test]
fn data_label_types_c_booleans_are_two_classes() {
    let upload = jsonl(&[json!(true), json!(false), json!(true)]);
    let plan = upload.plan().unwrap();
    assert_eq!(plan.labels, ["false", "true"]);
    assert_eq!(targets(&upload.load(&plan))[0], Target::Class(1));
    assert_eq!(csv(&["True", "False"]).plan().unwrap().labels, ["False", "True"]);
}

#[test]
fn data_label_types_d_fractions_are_numbers_and_never_cut() {
    let numbers = [json!(1.0), json!(2.0), json!(2.5)];
    for upload in [jsonl(&numbers), csv(&["1.0", "2.0", "2.5"])] {
        let plan = upload.plan().unwrap();
        assert_eq!((plan.problem_type, plan.labels.len()), (ProblemType::Regression, 0));
        assert_eq!(targets(&upload.load(&plan)), [Target::Value(1.0), Target::Value(2.0), Target::Value(2.5)]);
    }
    let classes = jsonl(&numbers).plan_as(Some(ProblemType::SingleLabel));
    let message = refusal(classes, "data.problem_type");
    assert!(message.contains("2.5 in line 3") && message.contains("strings"), "{message}");
    // Cells of CSV are strings already, so as classes they are what they say.
    let cells = csv(&["1.0", "2.0", "2.5"]).plan_as(Some(ProblemType::SingleLabel)).unwrap();
    assert_eq!(cells.labels, ["1.0", "2.0", "2.5"]);
    let whole = jsonl(&[json!(1.0), json!(2.0)]);
    assert_eq!(whole.plan().unwrap().labels, ["1", "2"]);
    let versions = jsonl(&[json!("1.0"), json!("1.5")]).plan().unwrap();
    assert_eq!(versions.labels, ["1.0", "1.5"]);
    let mixed = refusal(jsonl(&[json!(2.5), json!("pos")]).plan(), "training_file");
    assert!(mixed.contains("mixes numbers"), "{mixed}");
}

#[test]
fn data_label_types_e_a_single_class_is_refused() {
    let message = refusal(csv(&["spam", "spam"]).plan(), "training_file");
    assert!(message.contains("\"spam\"") && message.contains("two classes"), "{message}");
}

#[test]
fn data_label_types_f_rows_without_a_label_are_refused_with_their_lines() {
    let upload = jsonl(&[json!("a"), json!(null), json!("b"), json!("")]);
    let message = refusal(upload.plan(), "training_file");
    assert!(message.contains("null in line 2") && message.contains("empty in line 4"), "{message}");
    let cells = refusal(csv(&["a", "NaN", "b", "null", ""]).plan(), "training_file");
    for part in ["\"NaN\" in line 3", "\"null\" in line 5", "empty in line 6"] {
        assert!(cells.contains(part), "{cells}");
    }
}

#[test]
fn data_label_types_g_lists_are_several_labels() {
    let upload = jsonl(&[json!(["a", "b"]), json!([]), json!(["b", "b"])]);
    let plan = upload.plan().unwrap();
    assert_eq!((plan.problem_type, plan.labels.as_slice()), (ProblemType::MultiLabel, ["a", "b"].map(String::from).as_slice()));
    assert_eq!(targets(&upload.load(&plan)), [Target::Classes(vec![0, 1]), Target::Classes(vec![]), Target::Classes(vec![1])]);
    let single = refusal(upload.plan_as(Some(ProblemType::SingleLabel)), "data.problem_type");
    assert!(single.contains("lines 1, 2, 3"), "{single}");
    let mixed = jsonl(&[json!("a"), json!(["a", "b"])]);
    assert!(refusal(mixed.plan(), "training_file").contains("line 2"));
    let asked = mixed.plan_as(Some(ProblemType::MultiLabel)).unwrap();
    assert_eq!(targets(&mixed.load(&asked))[0], Target::Classes(vec![0]));
    let tags: &[&[&str]] = &[&["x"], &["x", "y"]];
    let columns = [("text", Column::Text(&["a", "b"])), ("label", Column::Texts(tags))];
    let table = Upload::new("a.parquet", parquet(WriterProperties::default(), &[&columns]));
    assert_eq!(table.plan().unwrap().labels, ["x", "y"]);
}

#[test]
fn data_label_types_h_space_around_a_label_is_dropped_with_a_warning() {
    let upload = jsonl(&[json!(" pos"), json!("pos"), json!("neg\r")]);
    let plan = upload.plan().unwrap();
    assert_eq!(plan.labels, ["neg", "pos"]);
    assert!(plan.warnings.iter().any(|w| w.contains("space") && w.contains("neg, pos")), "{plan:?}");
    assert_eq!(targets(&upload.load(&plan))[0], Target::Class(1));
    let case = csv(&["Pos", "pos", "neg"]).plan().unwrap();
    assert_eq!(case.labels, ["Pos", "neg", "pos"]);
    assert!(case.warnings.iter().any(|w| w.contains("case") && w.contains("Pos, pos")), "{case:?}");
}

#[test]
fn a_missing_column_is_refused_with_the_columns_that_exist() {
    let upload = Upload::new("a.csv", "sentence,class\na,x\nb,y\n");
    let message = refusal(upload.plan(), "data.text_column");
    assert!(message.contains("its columns are sentence, class"), "{message}");
    let cols = ClassificationColumns { text: "sentence".to_owned(), label: "class".to_owned(), text_pair: None };
    let plan_of = |cols: &ClassificationColumns| plan(&upload.summary(), None, cols, None, None);
    assert_eq!(plan_of(&cols).unwrap().labels, ["x", "y"]);
    let pair = ClassificationColumns { text_pair: Some("other".to_owned()), ..cols.clone() };
    refusal(plan_of(&pair), "data.text_pair_column");
    let same = ClassificationColumns { label: "sentence".to_owned(), ..cols.clone() };
    refusal(plan_of(&same), "data.label_column");
    let train = Upload::new("t.csv", "sentence,class\na,x\nb,y\n").summary();
    let eval = csv(&["x", "y"]).summary();
    refusal(plan(&train, Some(&eval), &cols, None, None), "validation_file");
}

#[test]
fn empty_texts_are_refused_with_their_number_and_lines() {
    let rows: String = (0..30).map(|i| format!("{},{}\n", if i % 2 == 0 { "t" } else { " " }, i % 3)).collect();
    let upload = Upload::new("a.csv", format!("text,label\n{rows}"));
    let message = refusal(upload.plan(), "training_file");
    assert!(message.contains("empty text in 15 rows: lines 3, 5, 7"), "{message}");
    let null = Upload::new("a.jsonl", "{\"text\":null,\"label\":1}\n{\"text\":\"a\",\"label\":2}\n");
    assert!(refusal(null.plan(), "training_file").contains("null) in 1 row: line 1"));
    let several = Upload::new("a.jsonl", "{\"text\":null,\"label\":1}\n{\"text\":\"\",\"label\":2}\n{\"text\":\"a\",\"label\":null}\n");
    let message = refusal(several.plan(), "training_file");
    for part in ["null) in 1 row: line 1", "empty text in 1 row: line 2", "without a label (null in line 3)"] {
        assert!(message.contains(part), "{message}");
    }
    let words = Upload::new("a.csv", "text,label\nNaN,a\nx,b\n").plan().unwrap();
    assert!(words.warnings.iter().any(|w| w.contains("NaN") && w.contains("line 2")), "{words:?}");
}

#[test]
fn labels_that_only_the_validation_file_has_are_refused_by_name() {
    let train = csv(&["a", "b", "a"]);
    let message = refusal(plan_pair(&train, &csv(&["a", "c", "c", "d"])), "validation_file");
    assert!(message.contains("in 3 rows, the first in line 3: c, d"), "{message}");
    // The validation file neither adds a class nor changes the order.
    let plan = plan_pair(&train, &csv(&["b"])).unwrap();
    assert_eq!(plan.labels, ["a", "b"]);
    let integers = jsonl(&[json!(0), json!(1)]);
    assert_eq!(plan_pair(&integers, &csv(&["1.0", "0"])).unwrap().labels, ["0", "1"]);
    let lists = jsonl(&[json!(["a"])]);
    assert!(refusal(plan_pair(&train, &lists), "validation_file").contains("line 1"));
    let numbers = jsonl(&[json!(0.5), json!(1.5)]);
    assert!(refusal(plan_pair(&numbers, &csv(&["x"])), "validation_file").contains("\"x\" in line 2"));
}

#[test]
fn listed_labels_fix_the_ids() {
    let upload = csv(&["b", "a", "b"]);
    let plan = plan_named(&upload, &["b", "a", "c"]).unwrap();
    assert_eq!(plan.labels, ["b", "a", "c"]);
    assert!(plan.warnings.iter().any(|w| w.contains("without a row") && w.contains('c')));
    assert_eq!(targets(&upload.load(&plan))[1], Target::Class(1));
    let message = refusal(plan_named(&upload, &["b", "c"]), "data.labels");
    assert!(message.contains("line 3: a"), "{message}");
    refusal(plan_named(&upload, &["a", "b", "a"]), "data.labels");
    let fractions = plan_named(&jsonl(&[json!(0.5), json!(1)]), &["0.5", "1"]).unwrap();
    assert_eq!(fractions.problem_type, ProblemType::SingleLabel);
}

#[test]
fn listed_labels_name_the_ids_of_the_hub_s_files() {
    let upload = jsonl(&[json!(2), json!(0), json!(2)]);
    let plan = plan_named(&upload, &["World", "Sports", "Business"]).unwrap();
    assert!(plan.labels_by_id);
    assert!(plan.warnings.iter().any(|w| w.contains("0 is \"World\"")), "{plan:?}");
    assert_eq!(targets(&upload.load(&plan)), [Target::Class(2), Target::Class(0), Target::Class(2)]);
    let out_of_range = plan_named(&jsonl(&[json!(3), json!(0)]), &["a", "b", "c"]);
    assert!(refusal(out_of_range, "data.labels").contains("line 1: 3, 0"));
}

#[test]
fn too_many_labels_are_refused_as_a_wrong_column() {
    let labels: Vec<Value> = (0..1_500).map(|i| json!(format!("id {i}"))).collect();
    let message = refusal(jsonl(&labels).plan(), "data.label_column");
    assert!(message.contains("more than 1,000"), "{message}");
    let numbers: Vec<Value> = (0..1_500).map(|i| json!(f64::from(i) + 0.5)).collect();
    assert_eq!(jsonl(&numbers).plan().unwrap().problem_type, ProblemType::Regression);
}

#[test]
fn regression_on_request_needs_numbers() {
    let asked = Some(ProblemType::Regression);
    let planned = csv(&["1", "5"]).plan_as(asked).unwrap();
    assert_eq!(planned.problem_type, ProblemType::Regression);
    let message = refusal(csv(&["1", "high"]).plan_as(asked), "training_file");
    assert!(message.contains("\"high\" in line 3"), "{message}");
    let listed = vec!["1".to_owned()];
    let both = plan(&csv(&["1", "5"]).summary(), None, &ClassificationColumns::default(), Some(&listed), asked);
    refusal(both, "data.labels");
}

#[test]
fn pairs_are_loaded_and_overlap_is_counted_over_both_texts() {
    let train = Upload::new("a.csv", "a,b,label\nx,1,p\ny,,n\n");
    let eval = Upload::new("b.csv", "a,b,label\nx,1,n\nx,2,n\ny,,p\n");
    let cols = ClassificationColumns { text: "a".to_owned(), label: "label".to_owned(), text_pair: Some("b".to_owned()) };
    let plan = plan(&train.summary(), Some(&eval.summary()), &cols, None, None).unwrap();
    assert!(plan.warnings.iter().any(|w| w.contains("\"b\"") && w.contains("line 3")), "{plan:?}");
    let load = |upload: &Upload| tunesmith_data::load(&upload.path, &upload.name, &upload.limits, &cols, &plan).unwrap();
    let (train, eval) = (load(&train), load(&eval));
    assert_eq!(train[0].text_pair.as_deref(), Some("1"));
    assert_eq!(train[0].line, 2);
    assert_eq!(overlap(&train, &eval), 2);
}

#[test]
fn a_file_that_was_not_planned_for_is_refused_with_line_and_field() {
    let plan = csv(&["a", "b"]).plan().unwrap();
    let other = csv(&["a", "z"]);
    let cols = ClassificationColumns::default();
    let error = tunesmith_data::load(&other.path, &other.name, &other.limits, &cols, &plan);
    let message = error.unwrap_err().to_string();
    assert!(message.starts_with("line 3: field \"label\" is \"z\", which is none of"), "{message}");
}

#[test]
fn duplicate_rows_are_a_warning() {
    let upload = Upload::new("a.csv", "text,label\na,x\na,x\nb,y\n");
    let plan = upload.plan().unwrap();
    assert!(plan.warnings.iter().any(|w| w.contains("1 row equal to an earlier one")), "{plan:?}");
}

#[test]
fn a_plan_survives_its_way_through_json() {
    let plan = csv(&["a", "b"]).plan().unwrap();
    let text = serde_json::to_string(&plan).unwrap();
    assert!(text.contains("\"single_label_classification\""), "{text}");
    assert_eq!(serde_json::from_str::<Plan>(&text).unwrap(), plan);
}
