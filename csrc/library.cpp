// Every operation's schema, in one place. Kernels register themselves under these names in csrc/cpu and csrc/cuda;
// shape inference, autograd and autocast are in pyar/ops, the mathematics in pyar/reference.
//
// B batch, D dimensions, H hidden units, K states, P outputs a dimension (1 for K = 2, else K), G forced dimensions.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(pyar, m) {
  // NADE. x uint8 [B, D] · W [D, K−1, H], or [D, H] for scalar input · c [H] · V [D, P, F] · b [D, P] ·
  // mlp: weight [M_l, M_{l−1}] and bias [M_l] of every added layer in turn, M_0 = H, F = M of the last layer or H.
  m.def("nade_log_prob(Tensor x, Tensor W, Tensor c, Tensor V, Tensor b, Tensor[] mlp) -> Tensor");
  m.def(
      "nade_log_prob_backward(Tensor grad, Tensor x, Tensor W, Tensor c, Tensor V, Tensor b, Tensor[] mlp) "
      "-> (Tensor, Tensor, Tensor, Tensor, Tensor[])");
  // The same backward where grad is [B, D] is that of the conditionals log p(x_d | x_<d) [B, D]. CPU alone.
  m.def("nade_conditional_log_prob(Tensor x, Tensor W, Tensor c, Tensor V, Tensor b, Tensor[] mlp) -> Tensor");
  // Gradients for each of G groups of n examples on their own, each output with a first dimension G: x [G, n, D], grad
  // [G, n] or [G, n, D]. Examples whose gradients are zero are left out. CPU alone.
  m.def(
      "nade_log_prob_backward_each(Tensor grad, Tensor x, Tensor W, Tensor c, Tensor V, Tensor b, Tensor[] mlp) "
      "-> (Tensor, Tensor, Tensor, Tensor, Tensor[])");
  m.def("nade_logits(Tensor x, Tensor W, Tensor c, Tensor V, Tensor b, Tensor[] mlp) -> Tensor");
  m.def(
      "nade_logits_backward(Tensor grad, Tensor x, Tensor W, Tensor c, Tensor V, Tensor b, Tensor[] mlp) "
      "-> (Tensor, Tensor, Tensor, Tensor, Tensor[])");
  // The mean negative log-likelihood and its gradients with respect to W, c, V, b in one sweep (no added layers).
  m.def("nade_mean_nll(Tensor x, Tensor W, Tensor c, Tensor V, Tensor b) -> (Tensor, Tensor, Tensor, Tensor, Tensor)");
  // The same with a weight for every example, −1/B Σ_b weights_b log p(x_b), and the log-probabilities [B], which are
  // −B times its gradient with respect to the weights; with added layers. CPU alone.
  m.def(
      "nade_weighted_mean_nll(Tensor x, Tensor weights, Tensor W, Tensor c, Tensor V, Tensor b, Tensor[] mlp) "
      "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor[])");
  // seed int64 [] on the parameters' device · given uint8 [num_samples, G], the forced first G dimensions.
  // Returns x uint8 [num_samples, D] and the log-probability [num_samples] of its drawn part.
  m.def(
      "nade_sample(Tensor W, Tensor c, Tensor V, Tensor b, Tensor[] mlp, Tensor seed, int num_samples, "
      "int first_index, float temperature, Tensor? given) -> (Tensor, Tensor)");

  // PixelLSTM. weights: weight_ih [4H, I], weight_hh [4H, H], bias_ih [4H], bias_hh [4H] of every layer in turn, gates
  // i, f, g, o, as torch.nn.LSTM stores them · head_weight [K, H] · head_bias [K].
  // x uint8 [B, D]. Returns log p(x) [B] and, if keep is true, what the gradients need: the states of all steps
  // (checkpoint_steps = 0) or those before about every checkpoint_steps-th step. CPU alone.
  m.def(
      "lstm_log_prob(Tensor x, Tensor[] weights, Tensor head_weight, Tensor head_bias, int checkpoint_steps, bool "
      "keep) "
      "-> (Tensor, Tensor)");
  // The same for the conditionals log p(x_d | x_<d) [B, D]; the gradients are lstm_log_prob_backward's, grad [B, D].
  m.def(
      "lstm_conditional_log_prob(Tensor x, Tensor[] weights, Tensor head_weight, Tensor head_bias, "
      "int checkpoint_steps, bool keep) -> (Tensor, Tensor)");
  m.def(
      "lstm_log_prob_backward(Tensor grad, Tensor x, Tensor[] weights, Tensor head_weight, Tensor head_bias, "
      "Tensor kept, int checkpoint_steps) -> (Tensor[], Tensor, Tensor)");
  m.def(
      "lstm_sample(Tensor[] weights, Tensor head_weight, Tensor head_bias, Tensor seed, int num_samples, "
      "int first_index, int num_dims, float temperature, Tensor? given) -> (Tensor, Tensor)");
  // The same from weight_hh, and weight_ih of all layers but the first, rounded to bfloat16 and stored so.
  m.def(
      "lstm_sample_bfloat16(Tensor[] weights, Tensor head_weight, Tensor head_bias, Tensor seed, int num_samples, "
      "int first_index, int num_dims, float temperature, Tensor? given) -> (Tensor, Tensor)");

  // MADE, CPU alone. W [D, K−1, H_1], or [D, H_1] for scalar input · c [H_1] · hidden: weight [H_l, H_{l−1}] and bias
  // [H_l] of every further layer in turn · V [D, P, H_L] · b [D, P] · A [D, K−1, D, P], or [D, D, P] for scalar input ·
  // activation: its place among relu, sigmoid, tanh.
  // x uint8 [B, D] · dropout: nothing, or [B, H_l] for every layer, what its units are multiplied by. Returns log p(x)
  // [B] and, if keep is true, what the gradients need.
  m.def(
      "made_log_prob(Tensor x, Tensor W, Tensor c, Tensor[] hidden, Tensor V, Tensor b, Tensor? A, int activation, "
      "float temperature, Tensor[] dropout, bool keep) -> (Tensor, Tensor)");
  // The gradients of W, c, hidden, V, b and, where it is given, A.
  m.def(
      "made_log_prob_backward(Tensor grad, Tensor x, Tensor W, Tensor c, Tensor[] hidden, Tensor V, Tensor b, Tensor? "
      "A, int activation, float temperature, Tensor[] dropout, Tensor kept) -> Tensor[]");
  // indices int64 [N], the samples' numbers · given uint8 [N, G], the first G steps · dims int64 [D], the dimension
  // whose uniform a step takes. Returns x uint8 [N, D] and the log-probability [N] of its drawn part.
  m.def(
      "made_sample(Tensor W, Tensor c, Tensor[] hidden, Tensor V, Tensor b, Tensor? A, int activation, Tensor seed, "
      "Tensor indices, float temperature, Tensor? given, Tensor? dims) -> (Tensor, Tensor)");

  // DeepNADE. R walks: x uint8 [R, D] · order int64 [R, D], the dimensions by step · begin, end int64 [R], the steps
  // that are asked for. W [D, K−1, H_1] · U [D, H_1] · c [H_1] · hidden: weight [H_l, H_{l−1}] and bias [H_l] of every
  // further layer in turn · V [D, P, H_L] · b [D, P] · activation: as MADE's. Returns the log-probability [R] of the
  // states at steps begin … end−1 given those before. CPU alone.
  m.def(
      "deep_nade_log_prob(Tensor x, Tensor order, Tensor begin, Tensor end, Tensor W, Tensor U, Tensor c, Tensor[] "
      "hidden, Tensor V, Tensor b, int activation, float temperature) -> Tensor");
  // The outputs of all steps [R, D, P].
  m.def(
      "deep_nade_path_outputs(Tensor x, Tensor order, Tensor W, Tensor U, Tensor c, Tensor[] hidden, Tensor V, Tensor "
      "b, int activation) -> Tensor");
  // seed int64 [] · indices int64 [R], the samples' numbers. Returns x uint8 [R, D], steps before begin copied, begin …
  // end−1 drawn, zeros behind, and the log-probability [R] of what was drawn.
  m.def(
      "deep_nade_sample(Tensor x, Tensor order, Tensor begin, Tensor end, Tensor W, Tensor U, Tensor c, Tensor[] "
      "hidden, Tensor V, Tensor b, int activation, Tensor seed, Tensor indices, float temperature) -> (Tensor, "
      "Tensor)");

  // RNADE. x float32 [B, D] · W [D, H] · c [H] · rho [D] · V [D, 3C, H], rows of logits, means and log-scales ·
  // b [D, 3C] · family: its place among gaussian, logistic, laplace · activation: as MADE's. CPU alone.
  m.def(
      "rnade_log_prob(Tensor x, Tensor W, Tensor c, Tensor rho, Tensor V, Tensor b, int family, int activation, float "
      "min_scale) -> Tensor");
  // log p(x_d | x_<d) of every step [B, D].
  m.def(
      "rnade_conditional_log_prob(Tensor x, Tensor W, Tensor c, Tensor rho, Tensor V, Tensor b, int family, int "
      "activation, float min_scale) -> Tensor");
  // The gradients of both, grad [B] or [B, D], with respect to x (empty if x_gradient is false), W, c, rho, V and b.
  m.def(
      "rnade_log_prob_backward(Tensor grad, Tensor x, Tensor W, Tensor c, Tensor rho, Tensor V, Tensor b, int family, "
      "int activation, float min_scale, bool x_gradient) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
  // seed int64 [] · given float32 [num_samples, G], the first G steps · dims int64 [D], the dimension whose uniforms a
  // step takes. Returns x float32 [num_samples, D], a column a step, and the log-density [num_samples] of its drawn
  // part.
  m.def(
      "rnade_sample(Tensor W, Tensor c, Tensor rho, Tensor V, Tensor b, int family, int activation, float min_scale, "
      "Tensor seed, int num_samples, int first_index, Tensor? given, Tensor? dims) -> (Tensor, Tensor)");

  // TableNADE. R walks over the columns: x float32 [R, D] · order int64 [R, D], permutations · observed, target bool
  // [R, D], without a common column · columns float64 [D, 7]: kind, K or C, floor of the scales, step, origin, lowest
  // and highest value of the grid, see pyar.ops.table_nade · W [ΣF, H_1] · U [D, H_1] · c [H_1] · hidden: as DeepNADE's
  // · V [ΣP, H_L] · b [ΣP]. Returns log p(x_d | what is observed, the target's columns before d in the order) [R, D],
  // zero outside the target. CPU alone.
  m.def(
      "table_nade_path_log_probs(Tensor x, Tensor order, Tensor observed, Tensor target, Tensor columns, Tensor W, "
      "Tensor U, Tensor c, Tensor[] hidden, Tensor V, Tensor b, int activation) -> Tensor");
  // seed int64 [] · indices int64 [R], the samples' numbers. Returns x with all that is not observed drawn, and the
  // log-probabilities [R, D] of that, zero where a column is observed.
  m.def(
      "table_nade_sample(Tensor x, Tensor order, Tensor observed, Tensor columns, Tensor W, Tensor U, Tensor c, "
      "Tensor[] "
      "hidden, Tensor V, Tensor b, int activation, Tensor seed, Tensor indices, float temperature) -> (Tensor, "
      "Tensor)");

  // Images of rows × columns pixels, C channels a pixel. head: W [M, F], w [M], E [C(C−1)/2, K, M], V [C, P, M],
  // b [C, P] · mixtures: P = 3·mixtures, or 0 for logits · first_index, given, dims, results as above. CPU alone.
  // The gated PixelCNN. layers: vertical [2F, I, rows, k] and bias [2F], horizontal [2F, I, 1, columns] and bias [2F],
  // cross [2F, 2F, 1, 1], skip [F, F, 1, 1] and bias [F], and of all layers but the last residual [F, F, 1, 1] and bias
  // [F] · gates [N, L, 4F], what the context adds to v' and to h'.
  m.def(
      "pixel_cnn_sample(Tensor[] layers, Tensor[] head, Tensor? gates, int rows, int columns, int num_states, "
      "int mixtures, Tensor seed, int num_samples, int first_index, float temperature, Tensor? given, Tensor? dims) "
      "-> (Tensor, Tensor)");

  // A layer of the Row LSTM or the Diagonal BiLSTM: x [B, rows, columns, F] → y of that shape, and if keep is true,
  // what its gradients would otherwise compute again. own [B, rows, columns, E]: the pixels' own numbers, which the
  // right direction of the Diagonal BiLSTM reads. weights, of h units: W [2, 4h, F], U [3, 4h, h], b, up [F, h],
  // up_bias [F]; if diagonal: W [4h, F], U [2, 4h, h], b from the left, W [4h, F + E], U, b from the right, up,
  // up_bias. Every b is [4h], or [B, 4h] with what a context adds. CPU alone.
  m.def("pixel_rnn_layer(Tensor x, Tensor? own, Tensor[] weights, bool diagonal, bool keep) -> (Tensor, Tensor)");
  // Gradients of x, of own (empty if own_gradient is false) and of the weights.
  m.def(
      "pixel_rnn_layer_backward(Tensor grad, Tensor x, Tensor? own, Tensor[] weights, Tensor kept, bool diagonal, "
      "bool own_gradient) -> (Tensor, Tensor, Tensor[])");
  // Sampling of both, C channels a pixel: first: above [F, C, 3, 7], left [F, C, 1, 3], bias [F] · layers: every
  // layer's weights in turn, b [4h] or [N, 4h] · the others as pixel_cnn_sample's. CPU alone.
  m.def(
      "pixel_rnn_sample(Tensor[] first, Tensor[] layers, Tensor[] head, bool diagonal, int rows, int columns, "
      "int num_states, int mixtures, Tensor seed, int num_samples, int first_index, float temperature, Tensor? given, "
      "Tensor? dims) -> (Tensor, Tensor)");
}
