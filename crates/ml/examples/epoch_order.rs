//! The order in which a job takes its rows, for peers that are to see the same: `epoch_order SEED ROWS EPOCHS < training.json`,
//! where the file is the section `training` of the job as the server answers it. Prints one JSON list of row numbers a step.

use tunesmith_ml::spec::TrainingSpec;
use tunesmith_ml::train::EpochOrder;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let (Some(seed), Some(rows), Some(epochs)) = (arguments.next(), arguments.next(), arguments.next()) else {
        return Err("usage: epoch_order SEED ROWS EPOCHS < training.json".into());
    };
    let (seed, rows, epochs): (u64, usize, u64) = (seed.parse()?, rows.parse()?, epochs.parse()?);
    let training: TrainingSpec = serde_json::from_reader(std::io::stdin())?;
    if training.micro_batch_tokens().is_some() {
        return Err("batches by tokens depend on the rows' lengths; use per_device_train_batch_size".into());
    }
    for epoch in 0..epochs {
        for step in EpochOrder::new(seed, epoch, &vec![1; rows], &training).steps {
            println!("{:?}", step.rows().collect::<Vec<_>>());
        }
    }
    Ok(())
}
