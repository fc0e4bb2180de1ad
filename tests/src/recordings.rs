//! Real recordings from `DATA_DIR` (default: `../shared/data` beside the checkout).
//!
//! `adi_motor/recordings.npy` holds 42 recordings of 40,000 samples on three axes at 20 kHz, 16-bit; the sensor's voltage is
//! 0.9 V + value * 30 uV, and 0 g lies at a level given for each recording.

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};

/// Samples per second of the motor recordings.
pub const MOTOR_SAMPLE_RATE_HZ: f64 = 20_000.0;
/// Volts per count of the motor recordings.
pub const MOTOR_VOLTS_PER_COUNT: f64 = 3e-5;

const VOLTS_AT_ZERO: f64 = 0.9;
const AXES: usize = 3;

/// One recording of the motor test bench.
#[derive(Clone, Debug)]
pub struct MotorRecording {
    /// Row in `recordings.csv`.
    pub row: usize,
    /// Shaft speed in revolutions per minute.
    pub rpm: u32,
    /// Extra load on the shaft, in pounds.
    pub load_pounds: u32,
    /// `healthy` or the kind of fault.
    pub kind: String,
    /// Whether the machine is at fault.
    pub abnormal: bool,
    /// Volts at 0 g of each axis.
    pub bias_volts: [f64; AXES],
    /// Counts of each axis, as recorded.
    pub counts: [Vec<i16>; AXES],
}

impl MotorRecording {
    /// One axis in volts around 0 g.
    #[must_use]
    pub fn volts(&self, axis: usize) -> Vec<f32> {
        let offset = VOLTS_AT_ZERO - self.bias_volts[axis];
        self.counts[axis]
            .iter()
            .map(|&count| (offset + f64::from(count) * MOTOR_VOLTS_PER_COUNT) as f32)
            .collect()
    }
}

/// Folder of the recordings, if it is there.
///
/// # Errors
/// It is missing and `CI` is `true`: there the scenarios must run on the real thing.
pub fn data_dir() -> anyhow::Result<Option<PathBuf>> {
    let dir = std::env::var_os("DATA_DIR")
        .map_or_else(|| crate::workspace_root().join("../shared/data"), PathBuf::from);
    if dir.join("adi_motor/recordings.npy").exists() {
        return Ok(Some(dir));
    }
    if std::env::var("CI").is_ok_and(|value| value == "true") {
        bail!("no recordings in {}: name their folder in DATA_DIR", dir.display());
    }
    Ok(None)
}

/// Says in one line, past the test runner's capture, that a scenario runs on simulated signals.
pub fn tell_simulated(scenario: &str) {
    // If standard error is closed, nobody wants to know.
    writeln!(
        std::io::stderr(),
        "{scenario}: no recordings found (DATA_DIR), using simulated signals"
    )
    .ok();
}

/// All recordings of the motor test bench.
///
/// # Errors
/// A file is missing or not in the form that `DATA.md` describes.
pub fn motor_recordings(data_dir: &Path) -> anyhow::Result<Vec<MotorRecording>> {
    let array = NpyI16::read(&data_dir.join("adi_motor/recordings.npy"))?;
    let &[rows, samples, AXES] = array.shape.as_slice() else {
        bail!("recordings.npy has shape {:?}", array.shape);
    };
    let table = std::fs::read_to_string(data_dir.join("adi_motor/recordings.csv"))?;
    let table = Csv::parse(&table)?;
    ensure!(table.rows.len() == rows, "{} lines for {rows} recordings", table.rows.len());
    (0..rows)
        .map(|row| {
            let values = &array.values[row * samples * AXES..(row + 1) * samples * AXES];
            let axis = |axis: usize| values.iter().skip(axis).step_by(AXES).copied().collect();
            motor_recording(&table, row, [axis(0), axis(1), axis(2)])
        })
        .collect()
}

fn motor_recording(
    table: &Csv,
    row: usize,
    counts: [Vec<i16>; AXES],
) -> anyhow::Result<MotorRecording> {
    Ok(MotorRecording {
        row,
        rpm: table.cell(row, "rpm")?.parse()?,
        load_pounds: table.cell(row, "extra_shaft_load_lb")?.parse()?,
        kind: table.cell(row, "kind")?.to_owned(),
        abnormal: table.cell(row, "abnormal")? == "1",
        bias_volts: [
            table.cell(row, "bias_x_v")?.parse()?,
            table.cell(row, "bias_y_v")?.parse()?,
            table.cell(row, "bias_z_v")?.parse()?,
        ],
        counts,
    })
}

/// A comma-separated table with a header and without quotes.
struct Csv {
    columns: Vec<String>,
    rows: Vec<Vec<String>>,
}

impl Csv {
    fn parse(text: &str) -> anyhow::Result<Self> {
        let mut lines =
            text.lines().map(|line| line.split(',').map(|cell| cell.trim().to_owned()).collect());
        Ok(Self { columns: lines.next().context("no header")?, rows: lines.collect() })
    }

    fn cell(&self, row: usize, column: &str) -> anyhow::Result<&str> {
        let index = self.columns.iter().position(|name| name == column);
        let index = index.with_context(|| format!("no column {column} in {:?}", self.columns))?;
        self.rows.get(row).and_then(|row| row.get(index)).map(String::as_str).context("short line")
    }
}

/// A NumPy file of 16-bit integers in C order.
struct NpyI16 {
    shape: Vec<usize>,
    values: Vec<i16>,
}

impl NpyI16 {
    /// Format: <https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html>, version 1.0.
    fn read(path: &Path) -> anyhow::Result<Self> {
        let bytes = std::fs::read(path).with_context(|| format!("reading {}", path.display()))?;
        Self::parse(&bytes).with_context(|| path.display().to_string())
    }

    fn parse(bytes: &[u8]) -> anyhow::Result<Self> {
        ensure!(bytes.starts_with(b"\x93NUMPY\x01\x00"), "not a NumPy file of version 1.0");
        let length = bytes.get(8..10).context("cut off")?;
        let end = 10 + usize::from(u16::from_le_bytes([length[0], length[1]]));
        let header = std::str::from_utf8(bytes.get(10..end).context("cut off")?)?;
        ensure!(header.contains("'<i2'"), "not little-endian 16-bit integers: {header}");
        ensure!(header.contains("'fortran_order': False"), "not in C order: {header}");
        let shape = header.split_once("'shape': (").context("no shape")?.1;
        let shape = shape.split_once(')').context("no shape")?.0;
        let shape: Vec<usize> = shape
            .split(',')
            .map(str::trim)
            .filter(|part| !part.is_empty())
            .map(str::parse)
            .collect::<Result<_, _>>()?;
        let values: Vec<i16> = bytes[end..]
            .chunks_exact(2)
            .map(|pair| i16::from_le_bytes([pair[0], pair[1]]))
            .collect();
        ensure!(values.len() == shape.iter().product::<usize>(), "cut off");
        Ok(Self { shape, values })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn npy(header: &str, values: &[i16]) -> Vec<u8> {
        let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
        bytes.extend(u16::try_from(header.len()).unwrap().to_le_bytes());
        bytes.extend(header.as_bytes());
        bytes.extend(values.iter().flat_map(|value| value.to_le_bytes()));
        bytes
    }

    #[test]
    fn a_numpy_file_gives_its_shape_and_values() {
        let header = "{'descr': '<i2', 'fortran_order': False, 'shape': (1, 2, 3), }  \n";
        let array = NpyI16::parse(&npy(header, &[1, -2, 3, 4, 5, 32_767])).unwrap();
        assert_eq!((array.shape, array.values), (vec![1, 2, 3], vec![1, -2, 3, 4, 5, 32_767]));
    }

    #[test]
    fn a_numpy_file_of_another_kind_is_refused() {
        let cut = "{'descr': '<i2', 'fortran_order': False, 'shape': (4,), }\n";
        assert!(NpyI16::parse(&npy(cut, &[1, 2, 3])).is_err());
        let floats = "{'descr': '<f8', 'fortran_order': False, 'shape': (1,), }\n";
        assert!(NpyI16::parse(&npy(floats, &[1, 2, 3, 4])).is_err());
        assert!(NpyI16::parse(b"\x93NUMPY\x01\x00").is_err());
    }
}
