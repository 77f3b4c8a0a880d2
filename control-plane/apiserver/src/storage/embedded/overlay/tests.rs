//! An overlay reads as a file would that was written, and the file stays as it was.

use std::io::{Seek, SeekFrom, Write};

use proptest::prelude::*;

use super::*;

#[derive(Clone, Debug)]
enum Step {
    Write(u64, Vec<u8>),
    Length(u64),
}

fn step() -> impl Strategy<Value = Step> {
    let place = 0u64..30_000;
    prop_oneof![
        3 => (place.clone(), prop::collection::vec(1u8.., 1..9000)).prop_map(|(at, data)| Step::Write(at, data)),
        1 => place.prop_map(Step::Length),
    ]
}

proptest! {
    #[test]
    fn reads_as_written_and_leaves_the_file_alone(
        original in prop::collection::vec(1u8.., 0..20_000),
        steps in prop::collection::vec(step(), 0..12),
    ) {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&original).unwrap();
        let overlay = Overlay::new(file.try_clone().unwrap()).unwrap();
        let mut model = original.clone();
        for step in steps {
            match step {
                Step::Write(at, data) => {
                    overlay.write(at, &data).unwrap();
                    let end = at as usize + data.len();
                    model.resize(model.len().max(end), 0);
                    model[at as usize..end].copy_from_slice(&data);
                }
                Step::Length(length) => {
                    overlay.set_len(length).unwrap();
                    model.resize(length as usize, 0);
                }
            }
            prop_assert_eq!(overlay.len().unwrap(), model.len() as u64);
            let mut seen = vec![0; model.len()];
            overlay.read(0, &mut seen).unwrap();
            prop_assert!(seen == model);
            prop_assert!(overlay.read(model.len() as u64, &mut [0]).is_err());
        }
        let mut kept = Vec::new();
        file.seek(SeekFrom::Start(0)).unwrap();
        std::io::Read::read_to_end(&mut file, &mut kept).unwrap();
        prop_assert!(kept == original);
    }
}
