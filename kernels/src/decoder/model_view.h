// model_view.h: what a decoder runs, as plain views of memory that somebody else keeps alive.
//
// Everything here was checked by the Python layer (qh_kernels/decoder.py): sizes agree, buffers
// have exactly the bytes of their format, head counts divide, head_dim is even.
#pragma once

#include <cstdint>
#include <vector>

#include "kernel_table.h"

namespace qh {

struct ModelShape {
  int64_t hidden_size;
  int64_t intermediate_size;
  int64_t num_attention_heads;
  int64_t num_key_value_heads;
  int64_t head_dim;
  int64_t vocab_size;
  int64_t num_hidden_layers;

  int64_t q_size() const noexcept { return num_attention_heads * head_dim; }
  int64_t kv_size() const noexcept { return num_key_value_heads * head_dim; }
};

// y = W x (+ bias); bias: (rows) float32 or nullptr.
struct Linear {
  MatrixView w;
  const float* bias;
};

// Norm weights are float32; nullptr where the layer has no such norm.
struct LayerView {
  Linear q, k, v, o, gate, up, down;
  const float* attention_norm;      // (hidden_size)
  const float* mlp_norm;            // (hidden_size)
  const float* q_norm;              // (head_dim), per head, before rope
  const float* k_norm;              // (head_dim)
  const float* attention_sub_norm;  // (q_size), before o
  const float* mlp_sub_norm;        // (intermediate_size), before down
  int64_t sliding_window;           // positions attended to, or 0 for all
};

struct ModelView {
  ModelShape shape;
  Linear embedding;  // (vocab_size, hidden_size); never multiplied, only looked up
  Linear head;       // (vocab_size, hidden_size)
  // The head once more in fewer bits, or no data. Where it is, all logits come from it, and those
  // of the best rows again from `head`; see best_rows.h.
  Linear head_scan{};
  const float* final_norm;
  const float* inv_freq;  // (head_dim / 2)
  float rms_norm_eps;
  Activation activation;
  std::vector<LayerView> layers;
};

struct DecoderOptions {
  int64_t context_length;
  int threads;
  KvType kv_type;
  bool exact;  // float32 activations for every format but ternary
  int64_t batch_tokens;
  bool trace;  // keep the activation codes of the last forward pass
};

}  // namespace qh
