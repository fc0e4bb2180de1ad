//! Blocks of raw samples, as sensors send them, and the pieces of the snapshots around trips.

use prost::Message as _;

use super::{
    DecodeError, Encoding, checked_unit, from_json, identity, identity_fields, name_text,
    parse_timestamp, present, timestamp_from_micros,
};
use crate::json::RawWaveformBlock;
use crate::model::{DeviceId, MachineId, SensorId, WaveformBlock, WaveformSnapshot};
use crate::wire::v1;

/// Reads one block of raw samples and scales it to physical units.
///
/// # Errors
/// Anything that is not one valid block.
pub fn decode_waveform_block(
    bytes: &[u8],
    encoding: Encoding,
) -> Result<WaveformBlock, DecodeError> {
    if bytes.is_empty() {
        return Err(DecodeError::Empty);
    }
    match encoding {
        Encoding::Json => {
            let raw: RawWaveformBlock = from_json(bytes)?;
            let scale = checked_scale(raw.scale)?;
            let samples = raw.samples.into_iter().map(|sample| sample * scale).collect();
            checked_block(WaveformBlock {
                machine_id: MachineId::new(&raw.machine_id)?,
                sensor_id: SensorId::new(&raw.sensor_id)?,
                first_sample: parse_timestamp(&raw.first_sample)?,
                sample_rate_hz: raw.sample_rate_hz,
                unit: raw.unit.map(|unit| checked_unit(&unit)).transpose()?,
                samples,
            })
        }
        Encoding::Protobuf => {
            let message = v1::WaveformBlock::decode(bytes).map_err(DecodeError::Protobuf)?;
            waveform_block_from_protobuf(message)
        }
    }
}

fn waveform_block_from_protobuf(message: v1::WaveformBlock) -> Result<WaveformBlock, DecodeError> {
    let scale = checked_scale(message.scale)?;
    checked_block(WaveformBlock {
        machine_id: MachineId::new(&message.machine_id)?,
        sensor_id: SensorId::new(&message.sensor_id)?,
        first_sample: timestamp_from_micros(message.first_sample_micros)?,
        sample_rate_hz: message.sample_rate_hz,
        unit: present(message.unit).map(|unit| checked_unit(&unit)).transpose()?,
        samples: samples_from_protobuf(message.samples, scale)?,
    })
}

/// The scale that a block of samples was written with, in physical units per count; 1 where it names none.
///
/// # Errors
/// Anything that is not a block with a usable scale.
pub fn waveform_scale(bytes: &[u8], encoding: Encoding) -> Result<f64, DecodeError> {
    /// Everything else of the message is passed over.
    #[derive(Clone, PartialEq, prost::Message)]
    struct ScaleOnly {
        #[prost(double, optional, tag = "5")]
        scale: Option<f64>,
    }
    let scale = match encoding {
        Encoding::Json => from_json::<RawWaveformBlock>(bytes)?.scale,
        Encoding::Protobuf => ScaleOnly::decode(bytes).map_err(DecodeError::Protobuf)?.scale,
    };
    checked_scale(scale)?;
    Ok(scale.unwrap_or(1.0))
}

/// Reads one piece of the samples around a trip, always protobuf.
///
/// # Errors
/// Anything that is not one valid piece.
pub fn decode_waveform_snapshot(bytes: &[u8]) -> Result<WaveformSnapshot, DecodeError> {
    if bytes.is_empty() {
        return Err(DecodeError::Empty);
    }
    let mut message = v1::WaveformBlock::decode(bytes).map_err(DecodeError::Protobuf)?;
    let device_id = present(std::mem::take(&mut message.device_id))
        .map(|text| DeviceId::new(&text))
        .transpose()?;
    let scale = match &message.samples {
        Some(v1::waveform_block::Samples::SamplesI16(_)) => Some(message.scale.unwrap_or(1.0)),
        Some(v1::waveform_block::Samples::SamplesF32(_)) | None => None,
    };
    Ok(WaveformSnapshot {
        scale,
        trip_id: present(std::mem::take(&mut message.trip_id))
            .ok_or(DecodeError::Missing("trip_id"))?,
        piece: message.piece.ok_or(DecodeError::Missing("piece"))?,
        identity: identity(device_id, message.generation, message.sequence)?,
        block: waveform_block_from_protobuf(message)?,
    })
}

/// Writes one piece of the samples around a trip: as 16-bit counts where its scale allows, else as 32-bit floats.
#[must_use]
pub fn encode_waveform_snapshot(snapshot: &WaveformSnapshot) -> Vec<u8> {
    let block = &snapshot.block;
    let (device_id, generation, sequence) = identity_fields(snapshot.identity.as_ref());
    let counted = snapshot.scale.and_then(|scale| Some((scale, counts(&block.samples, scale)?)));
    let (scale, samples) = match counted {
        Some((scale, counts)) => {
            let bytes = counts.into_iter().flat_map(i16::to_le_bytes).collect();
            (Some(scale), v1::waveform_block::Samples::SamplesI16(bytes))
        }
        None => {
            let values = block.samples.clone();
            (None, v1::waveform_block::Samples::SamplesF32(v1::FloatSamples { values }))
        }
    };
    v1::WaveformBlock {
        machine_id: name_text(&block.machine_id),
        sensor_id: name_text(&block.sensor_id),
        first_sample_micros: Some(block.first_sample.micros()),
        sample_rate_hz: block.sample_rate_hz,
        scale,
        unit: block.unit.as_ref().map_or_else(String::new, |unit| unit.to_string()),
        samples: Some(samples),
        trip_id: snapshot.trip_id.clone(),
        device_id,
        generation,
        sequence,
        piece: Some(snapshot.piece),
    }
    .encode_to_vec()
}

/// The 16-bit counts that give exactly these samples when they are scaled; nothing if there are none.
#[must_use]
pub fn counts(samples: &[f32], scale: f64) -> Option<Vec<i16>> {
    let scale = scale as f32;
    if !(scale.is_finite() && scale > 0.0) {
        return None;
    }
    let count = |sample: &f32| {
        // A cast from float saturates; what does not come back bit for bit is refused.
        let count = (sample / scale).round() as i16;
        (f32::from(count) * scale).to_bits().eq(&sample.to_bits()).then_some(count)
    };
    samples.iter().map(count).collect()
}

/// Writes one block of samples as 32-bit floats in physical units.
#[must_use]
pub fn encode_waveform_block(block: &WaveformBlock) -> Vec<u8> {
    v1::WaveformBlock {
        machine_id: name_text(&block.machine_id),
        sensor_id: name_text(&block.sensor_id),
        first_sample_micros: Some(block.first_sample.micros()),
        sample_rate_hz: block.sample_rate_hz,
        scale: None,
        unit: block.unit.as_ref().map_or_else(String::new, |unit| unit.to_string()),
        samples: Some(v1::waveform_block::Samples::SamplesF32(v1::FloatSamples {
            values: block.samples.clone(),
        })),
        ..v1::WaveformBlock::default()
    }
    .encode_to_vec()
}

fn samples_from_protobuf(
    samples: Option<v1::waveform_block::Samples>,
    scale: f32,
) -> Result<Vec<f32>, DecodeError> {
    match samples {
        None => Err(DecodeError::Missing("samples")),
        Some(v1::waveform_block::Samples::SamplesF32(floats)) => {
            let mut values = floats.values;
            for value in &mut values {
                *value *= scale;
            }
            Ok(values)
        }
        Some(v1::waveform_block::Samples::SamplesI16(bytes)) => {
            let (pairs, rest) = bytes.as_chunks::<2>();
            if !rest.is_empty() {
                return Err(DecodeError::Waveform("samples_i16 has an odd number of bytes"));
            }
            Ok(pairs.iter().map(|pair| f32::from(i16::from_le_bytes(*pair)) * scale).collect())
        }
    }
}

fn checked_scale(scale: Option<f64>) -> Result<f32, DecodeError> {
    let scale = scale.unwrap_or(1.0) as f32;
    if scale.is_finite() && scale > 0.0 {
        Ok(scale)
    } else {
        Err(DecodeError::Waveform("scale is not a positive number"))
    }
}

fn checked_block(block: WaveformBlock) -> Result<WaveformBlock, DecodeError> {
    if !(block.sample_rate_hz.is_finite() && block.sample_rate_hz > 0.0) {
        return Err(DecodeError::Waveform("sample_rate_hz is not a positive number"));
    }
    if block.samples.is_empty() {
        return Err(DecodeError::Waveform("no samples"));
    }
    match block.samples.iter().find(|sample| !sample.is_finite()) {
        Some(&value) => {
            Err(DecodeError::NotFinite { field: "samples".to_owned(), value: f64::from(value) })
        }
        None => Ok(block),
    }
}
