#include "client/cli/request_flags.h"

namespace invar {

void RequestFlags::AddTo(FlagSet& flags) {
  flags.Section("How tokens are chosen");
  flags.Add("temperature", "X",
            "0 is greedy: always the likeliest token. Default: 0.",
            &temperature_);
  flags.Add("top-k", "K", "Only among the K likeliest; 0: all. Default: 0.",
            &top_k_);
  flags.Add("top-p", "P",
            "Only among the likeliest that together hold P, in (0, 1]. "
            "Default: 1.",
            &top_p_);
  flags.Add("min-p", "P",
            "Only those at least P times as likely as the likeliest. "
            "Default: 0.",
            &min_p_);
  flags.Add("seed", "N",
            "Same request, same seed: same answer. Default: made from the "
            "request's id.",
            &seed_);
  flags.Add("presence-penalty", "X",
            "Subtracted once from the logits of tokens written. Default: 0.",
            &presence_penalty_);
  flags.Add("frequency-penalty", "X",
            "Subtracted for each time a token was written. Default: 0.",
            &frequency_penalty_);
  flags.Add("repetition-penalty", "X",
            "Divides the positive logits of tokens seen, multiplies the "
            "negative. Default: 1.",
            &repetition_penalty_);
  flags.Add("logit-bias", "ID=X,...", "Added to the logits of these token ids.",
            &logit_bias_);

  flags.Section("When the answer ends");
  flags.Add("max-tokens", "N",
            "Tokens at most; 0 only scores the prompt. Default: the "
            "server's limits.default_max_tokens.",
            &max_tokens_);
  flags.Add("min-tokens", "N", "Tokens at least. Default: 0.", &min_tokens_);
  flags.Add("stop", "TEXT", "End at this text; may be given again.",
            &stop_strings_);
  flags.Add("stop-token-ids", "ID,...", "End at these token ids.",
            &stop_token_ids_);
  flags.AddSwitch("ignore-eos", "Go on past the model's own end.",
                  &ignore_eos_);
  flags.AddSwitch("include-stop-text", "Leave the stop text in the answer.",
                  &include_stop_text_);
  flags.Add("deadline", "SECONDS",
            "Give up then; the server stops, too. Default: 600.", &deadline_);

  flags.Section("Which model");
  flags.Add("model", "NAME", "Default: the one that the server serves.",
            &model_);
}

void RequestFlags::Fill(v1::GenerateRequest& request) const {
  request.set_model(model_);
  v1::Sampling& sampling = *request.mutable_sampling();
  if (temperature_) sampling.set_temperature(*temperature_);
  if (top_k_) sampling.set_top_k(*top_k_);
  if (top_p_) sampling.set_top_p(*top_p_);
  if (min_p_) sampling.set_min_p(*min_p_);
  if (presence_penalty_) sampling.set_presence_penalty(*presence_penalty_);
  if (frequency_penalty_) sampling.set_frequency_penalty(*frequency_penalty_);
  if (repetition_penalty_) {
    sampling.set_repetition_penalty(*repetition_penalty_);
  }
  sampling.mutable_logit_bias()->insert(logit_bias_.begin(), logit_bias_.end());
  if (seed_) sampling.set_seed(*seed_);

  v1::Stopping& stopping = *request.mutable_stopping();
  if (max_tokens_) stopping.set_max_tokens(*max_tokens_);
  if (min_tokens_) stopping.set_min_tokens(*min_tokens_);
  for (const std::string& stop : stop_strings_) stopping.add_stop_strings(stop);
  if (stop_token_ids_) {
    stopping.mutable_stop_token_ids()->Add(stop_token_ids_->begin(),
                                           stop_token_ids_->end());
  }
  if (ignore_eos_) stopping.set_ignore_eos(*ignore_eos_);
  if (include_stop_text_) stopping.set_include_stop_text(*include_stop_text_);
}

}  // namespace invar
