//! Scoring with TensorFlow Lite: all of the project's foreign code. One interpreter, one thread, float32.
//!
//! An interpreter borrows its model, which borrows its bytes: `self_cell` ties each to its owner, so that no `unsafe` is
//! written here.

use edge_core::features::{FeatureName, Features};
use self_cell::self_cell;
use tflitec::interpreter::{Interpreter, Options};
use tflitec::model::Model;
use tflitec::tensor::{DataType, Tensor};

use super::{BundleError, ScoreError, Scorer};

/// Alignment that TensorFlow Lite wants for a model in memory, in bytes.
const MODEL_ALIGNMENT: usize = 16;

/// A model's bytes at an aligned place.
struct AlignedBytes {
    buffer: Vec<u8>,
    start: usize,
}

impl AlignedBytes {
    fn new(content: &[u8]) -> Self {
        let mut buffer = vec![0; content.len() + MODEL_ALIGNMENT];
        // The buffer is not resized again, so it stays where it is.
        let start = buffer.as_ptr().align_offset(MODEL_ALIGNMENT).min(MODEL_ALIGNMENT);
        buffer[start..start + content.len()].copy_from_slice(content);
        buffer.truncate(start + content.len());
        Self { buffer, start }
    }

    fn as_slice(&self) -> &[u8] {
        &self.buffer[self.start..]
    }
}

self_cell!(
    struct LoadedModel {
        owner: AlignedBytes,
        #[covariant]
        dependent: Model,
    }
);

self_cell!(
    struct LoadedInterpreter {
        owner: LoadedModel,
        #[covariant]
        dependent: Interpreter,
    }
);

/// Runs a model whose input is float32 [1, features] and whose output is one float32 logit.
pub struct TfliteScorer {
    interpreter: LoadedInterpreter,
    order: Vec<FeatureName>,
    input: Vec<f32>,
}

impl std::fmt::Debug for TfliteScorer {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("TfliteScorer").field("order", &self.order).finish_non_exhaustive()
    }
}

impl TfliteScorer {
    /// Makes an interpreter of a `.tflite` file's content; `order` are the features of its input.
    ///
    /// # Errors
    /// The content is no model, or its input or output has another type or shape.
    pub fn new(content: &[u8], order: Vec<FeatureName>) -> Result<Self, BundleError> {
        let failed = |error: tflitec::Error| BundleError::Model(error.to_string());
        let model = LoadedModel::try_new(AlignedBytes::new(content), |bytes| {
            Model::from_bytes(bytes.as_slice())
        })
        .map_err(failed)?;
        let interpreter = LoadedInterpreter::try_new(model, |model| {
            Interpreter::new(model.borrow_dependent(), Some(Options { thread_count: 1 }))
        })
        .map_err(failed)?;
        let running = interpreter.borrow_dependent();
        running.allocate_tensors().map_err(failed)?;
        if running.input_tensor_count() != 1 || running.output_tensor_count() != 1 {
            return Err(BundleError::Shape {
                what: "numbers of inputs and outputs",
                found: format!(
                    "{} and {}",
                    running.input_tensor_count(),
                    running.output_tensor_count()
                ),
                expected: "1 and 1".to_owned(),
            });
        }
        check_tensor("input", &running.input(0).map_err(failed)?, order.len())?;
        check_tensor("output", &running.output(0).map_err(failed)?, 1)?;
        Ok(Self { interpreter, input: vec![0.0; order.len()], order })
    }
}

impl Scorer for TfliteScorer {
    fn logit(&mut self, features: &Features) -> Result<f64, ScoreError> {
        for (value, name) in self.input.iter_mut().zip(&self.order) {
            let feature = features.get(*name).ok_or(ScoreError::FeatureMissing(*name))?;
            *value = feature as f32;
        }
        let failed = |error: tflitec::Error| ScoreError::Inference(error.to_string());
        let interpreter = self.interpreter.borrow_dependent();
        interpreter.copy(&self.input, 0).map_err(failed)?;
        interpreter.invoke().map_err(failed)?;
        let output = interpreter.output(0).map_err(failed)?;
        let logit = output.data::<f32>().first().copied().unwrap_or(f32::NAN);
        if !logit.is_finite() {
            return Err(ScoreError::NotFinite);
        }
        Ok(f64::from(logit))
    }
}

/// Float32 of shape [1, values].
fn check_tensor(what: &'static str, tensor: &Tensor<'_>, values: usize) -> Result<(), BundleError> {
    if tensor.data_type() == DataType::Float32 && tensor.shape().dimensions() == &[1, values] {
        return Ok(());
    }
    Err(BundleError::Shape {
        what,
        found: format!("{:?} {:?}", tensor.data_type(), tensor.shape().dimensions()),
        expected: format!("Float32 [1, {values}]"),
    })
}
