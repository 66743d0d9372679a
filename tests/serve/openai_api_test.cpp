#include "serve/openai_api.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "tests/serve/fakes.h"

namespace nibble {
namespace {

using ::testing::ElementsAre;
using testing::FakeScore;
using testing::FakeText;
using ::testing::HasSubstr;
using testing::kFakeVocab;

class OpenAiApi : public ::testing::Test {
 protected:
  OpenAiApi() {
    context_.model_names = {"m", "alias"};
    context_.engine.max_model_len = 64;
    context_.engine.vocab_size = kFakeVocab;
    context_.text = &text_;
  }

  // One user message "hi" plus the given fields.
  ApiResult<ApiRequest> Chat(const std::string& fields) const {
    return ParseChatCompletion(R"({"messages":[{"role":"user","content":"hi"}])" + fields + "}",
                               context_);
  }
  ApiResult<ApiRequest> Complete(const std::string& fields) const {
    return ParseCompletion("{" + fields + "}", context_);
  }
  SamplingParams ChatSampling(const std::string& fields) const {
    auto request = Chat(fields);
    EXPECT_TRUE(request) << fields << ": " << (request ? "" : request.error().message);
    return request ? request->requests.front().sampling : SamplingParams{};
  }
  std::string PromptText(const ApiResult<ApiRequest>& request) const {
    EXPECT_TRUE(request) << (request ? "" : request.error().message);
    return request ? text_.Decode(request->requests.front().prompt, false) : "";
  }

  FakeText text_;
  ApiContext context_;
};

TEST_F(OpenAiApi, ReadsEverySamplingField) {
  const SamplingParams s = ChatSampling(
      R"(,"temperature":0.5,"top_p":0.25,"min_p":0.125,"top_k":7,"presence_penalty":-1,
         "frequency_penalty":1.5,"repetition_penalty":1.25,"seed":-3,"max_tokens":9,"min_tokens":2,
         "ignore_eos":true,"stop":["a","b"],"stop_token_ids":[5],"include_stop_str_in_output":true,
         "skip_special_tokens":false,"logit_bias":{"65":-100,"66":2.5},"logprobs":true,
         "top_logprobs":3)");
  EXPECT_EQ(s.temperature, 0.5F);
  EXPECT_EQ(s.top_p, 0.25F);
  EXPECT_EQ(s.min_p, 0.125F);
  EXPECT_EQ(s.top_k, 7);
  EXPECT_EQ(s.presence_penalty, -1.0F);
  EXPECT_EQ(s.frequency_penalty, 1.5F);
  EXPECT_EQ(s.repetition_penalty, 1.25F);
  EXPECT_EQ(s.seed, static_cast<std::uint64_t>(-3));
  EXPECT_EQ(s.max_tokens, 9);
  EXPECT_EQ(s.min_tokens, 2);
  EXPECT_TRUE(s.ignore_eos);
  EXPECT_THAT(s.stop, ElementsAre("a", "b"));
  EXPECT_THAT(s.stop_token_ids, ElementsAre(TokenId{5}));
  EXPECT_TRUE(s.include_stop_str_in_output);
  EXPECT_FALSE(s.skip_special_tokens);
  ASSERT_EQ(s.logit_bias.size(), 2U);
  EXPECT_EQ(s.logit_bias[1].first, TokenId{66});
  EXPECT_EQ(s.logit_bias[1].second, 2.5F);
  EXPECT_EQ(s.num_logprobs, 3);
  EXPECT_EQ(s.num_prompt_logprobs, -1);
}

TEST_F(OpenAiApi, DefaultsAreTheRequestThenTheModelThenNeutral) {
  SamplingParams s = ChatSampling("");
  EXPECT_EQ(s.temperature, 1.0F);
  EXPECT_EQ(s.top_p, 1.0F);
  EXPECT_EQ(s.top_k, 0);
  EXPECT_EQ(s.num_logprobs, -1);
  EXPECT_EQ(s.max_tokens, 64 - 18);  // what the context leaves
  context_.defaults = {.temperature = 0.6F,
                       .top_p = 0.9F,
                       .min_p = {},
                       .repetition_penalty = 1.1F,
                       .top_k = 20,
                       .max_tokens = 30};
  s = ChatSampling("");
  EXPECT_EQ(s.temperature, 0.6F);
  EXPECT_EQ(s.top_p, 0.9F);
  EXPECT_EQ(s.repetition_penalty, 1.1F);
  EXPECT_EQ(s.top_k, 20);
  EXPECT_EQ(s.max_tokens, 30);
  s = ChatSampling(R"(,"temperature":0,"top_k":-1,"max_completion_tokens":40,"max_tokens":3)");
  EXPECT_EQ(s.temperature, 0.0F);
  EXPECT_EQ(s.top_k, 0);
  EXPECT_EQ(s.max_tokens, 40);
  EXPECT_NE(ChatSampling("").seed, ChatSampling("").seed);  // drawn afresh each time
  context_.defaults = {};
  context_.engine.num_blocks = 2;  // of 16 tokens
  EXPECT_EQ(ChatSampling("").max_tokens, 15);
}

TEST_F(OpenAiApi, NullIsAbsent) {
  const auto request =
      Chat(R"(,"stop":null,"logprobs":null,"seed":null,"temperature":null,"tools":null,"n":null,
              "max_tokens":null,"response_format":null,"stream":null,"stream_options":null,
              "logit_bias":null,"guided_json":null,"model":null,"chat_template":null)");
  ASSERT_TRUE(request) << request.error().message;
  EXPECT_EQ(request->model, "m");
  EXPECT_FALSE(request->stream);
}

TEST_F(OpenAiApi, IgnoresWhatItDoesNotKnowUnlessStrict) {
  EXPECT_TRUE(Chat(R"(,"some_new_thing":1,"user":"u","store":true)"));
  context_.strict = true;
  EXPECT_TRUE(Chat(R"(,"user":"u","store":true,"temperature":1)"));
  const auto refused = Chat(R"(,"some_new_thing":1)");
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().param, "some_new_thing");
}

struct BadField {
  std::string fields;
  std::string param;
};

TEST_F(OpenAiApi, NamesTheFieldThatIsWrong) {
  const std::string long_stop(257, 'x');
  const std::vector<BadField> cases = {
      {R"(,"temperature":-0.1)", "temperature"},
      {R"(,"temperature":2.1)", "temperature"},
      {R"(,"temperature":"1")", "temperature"},
      {R"(,"temperature":1e308)", "temperature"},
      {R"(,"top_p":0)", "top_p"},
      {R"(,"top_p":1.01)", "top_p"},
      {R"(,"min_p":-1)", "min_p"},
      {R"(,"top_k":-2)", "top_k"},
      {R"(,"top_k":1.5)", "top_k"},
      {R"(,"top_k":9223372036854775808)", "top_k"},
      {R"(,"presence_penalty":2.5)", "presence_penalty"},
      {R"(,"repetition_penalty":0)", "repetition_penalty"},
      {R"(,"n":0)", "n"},
      {R"(,"n":17)", "n"},
      {R"(,"n":true)", "n"},
      {R"(,"best_of":2)", "best_of"},
      {R"(,"seed":1.5)", "seed"},
      {R"(,"seed":"1")", "seed"},
      {R"(,"max_tokens":0)", "max_tokens"},
      {R"(,"max_tokens":-1)", "max_tokens"},
      {R"(,"max_tokens":47)", "max_tokens"},
      {R"(,"max_completion_tokens":2147483648)", "max_completion_tokens"},
      {R"(,"max_tokens":3,"min_tokens":4)", "min_tokens"},
      {R"(,"stop":"")", "stop"},
      {R"(,"stop":[1])", "stop"},
      {R"(,"stop":")" + long_stop + "\"", "stop"},
      {R"(,"stop_token_ids":[258])", "stop_token_ids"},
      {R"(,"stop_token_ids":[-1])", "stop_token_ids"},
      {R"(,"logit_bias":{"258":1})", "logit_bias"},
      {R"(,"logit_bias":{"+1":1})", "logit_bias"},
      {R"(,"logit_bias":{"1":101})", "logit_bias"},
      {R"(,"logprobs":1)", "logprobs"},
      {R"(,"top_logprobs":1)", "top_logprobs"},
      {R"(,"logprobs":true,"top_logprobs":21)", "top_logprobs"},
      {R"(,"stream_options":{"include_usage":true})", "stream_options"},
      {R"(,"stream":true,"stream_options":{"include_usage":1})", "stream_options.include_usage"},
      {R"(,"stream":true,"prompt_logprobs":1)", "prompt_logprobs"},
      {R"(,"stream":"yes")", "stream"},
      {R"(,"add_generation_prompt":true,"continue_final_message":true)", "continue_final_message"},
      // Known, not built: never ignored.
      {R"(,"tools":[{"type":"function","function":{"name":"f"}}])", "tools"},
      {R"(,"tool_choice":"required")", "tool_choice"},
      {R"(,"response_format":{"type":"json_object"})", "response_format"},
      {R"(,"response_format":{"type":"json_schema","json_schema":{}})", "response_format"},
      {R"(,"structured_outputs":{"regex":"a"})", "structured_outputs"},
      {R"(,"guided_json":{"type":"object"})", "guided_json"},
      {R"(,"guided_choice":["a"])", "guided_choice"},
      {R"(,"use_beam_search":true)", "use_beam_search"},
      {R"(,"prompt_embeds":"AAAA")", "prompt_embeds"},
      {R"(,"allowed_token_ids":[1])", "allowed_token_ids"},
      {R"(,"bad_words":["a"])", "bad_words"},
      {R"(,"modalities":["audio"])", "modalities"},
      {R"(,"audio":{"voice":"x"})", "audio"},
      {R"(,"functions":[{"name":"f"}])", "functions"},
      {R"(,"chat_template":"x")", "chat_template"},
      {R"(,"chat_template_kwargs":{"messages":[]})", "chat_template_kwargs"},
      {R"(,"reasoning_effort":"huge")", "reasoning_effort"},
      {R"(,"echo":true)", "echo"},
      {R"(,"priority":1)", "priority"},
      {R"(,"truncate_prompt_tokens":0)", "truncate_prompt_tokens"},
  };
  for (const auto& [fields, param] : cases) {
    const auto request = Chat(fields);
    ASSERT_FALSE(request) << fields;
    EXPECT_EQ(request.error().status, 400) << fields;
    EXPECT_EQ(request.error().param, param) << fields;
    EXPECT_FALSE(request.error().message.empty()) << fields;
  }
}

TEST_F(OpenAiApi, SwitchedOffFeaturesAreAccepted) {
  const auto request = Chat(R"(,"tools":[],"tool_choice":"auto","response_format":{"type":"text"},
              "use_beam_search":false,"guided_json":null,"bad_words":[],"modalities":["text"],
              "best_of":1,"suffix":"","priority":0,"length_penalty":1.0,"echo":false)");
  ASSERT_TRUE(request) << request.error().message;
  EXPECT_TRUE(
      Chat(R"(,"tools":[{"type":"function","function":{"name":"f"}}],"tool_choice":"none")"));
}

TEST_F(OpenAiApi, RefusesAModelItDoesNotServe) {
  EXPECT_EQ(Chat(R"(,"model":"alias")")->model, "alias");
  const auto request = Chat(R"(,"model":"gpt")");
  ASSERT_FALSE(request);
  EXPECT_EQ(request.error().status, 404);
  EXPECT_EQ(request.error().type, "NotFoundError");
  EXPECT_EQ(request.error().message, "The model `gpt` does not exist.");
}

TEST_F(OpenAiApi, ReadsMessagesInTheirForms) {
  EXPECT_EQ(PromptText(ParseChatCompletion(
                R"({"messages":[{"role":"system","content":"s"},
                  {"role":"user","content":[{"type":"text","text":"a"},{"type":"text","text":"b"}]},
                  {"role":"assistant","content":null,"tool_calls":[]},
                  {"role":"tool","content":"t","tool_call_id":"x"}]})",
                context_)),
            "system:s\nuser:a\nb\nassistant:\ntool:t\nassistant:");
  EXPECT_EQ(PromptText(Chat(R"(,"add_generation_prompt":false)")), "user:hi\n");
  EXPECT_EQ(PromptText(Chat(R"(,"add_special_tokens":true)")), "<begin>user:hi\nassistant:");
}

TEST_F(OpenAiApi, NamesTheMessageThatIsWrong) {
  const std::vector<BadField> cases = {
      {R"([])", "messages"},
      {R"("hi")", "messages"},
      {R"([1])", "messages.0"},
      {R"([{"role":"user","content":"a"},{"role":"robot","content":"b"}])", "messages.1.role"},
      {R"([{"content":"a"}])", "messages.0.role"},
      {R"([{"role":"user"}])", "messages.0.content"},
      {R"([{"role":"user","content":1}])", "messages.0.content"},
      {R"([{"role":"user","content":[{"type":"image_url","image_url":{"url":"x"}}]}])",
       "messages.0.content.0.type"},
      {R"([{"role":"user","content":[{"type":"input_audio"}]}])", "messages.0.content.0.type"},
      {R"([{"role":"user","content":["a"]}])", "messages.0.content.0.type"},
      {R"([{"role":"user","content":[{"type":"text"}]}])", "messages.0.content.0.text"},
      {R"([{"role":"assistant","content":"","tool_calls":[{"function":{"name":"f","arguments":"{"}}]}])",
       "messages.0.tool_calls.0.function.arguments"},
      {R"([{"role":"assistant","content":"","tool_calls":[1]}])",
       "messages.0.tool_calls.0.function.name"},
      {R"([{"role":"user","content":"refuse"}])", "messages"},
  };
  for (const auto& [messages, param] : cases) {
    const auto request = ParseChatCompletion("{\"messages\":" + messages + "}", context_);
    ASSERT_FALSE(request) << messages;
    EXPECT_EQ(request.error().status, 400);
    EXPECT_EQ(request.error().param, param) << messages;
  }
}

TEST_F(OpenAiApi, ReadsPromptsInTheirFourShapes) {
  const auto prompts = [&](const std::string& json) {
    auto request = Complete("\"prompt\":" + json);
    std::vector<std::string> texts;
    EXPECT_TRUE(request) << json;
    for (const auto& one : request->requests) {
      texts.push_back(text_.Decode(one.prompt, false));
    }
    return texts;
  };
  EXPECT_THAT(prompts(R"("ab")"), ElementsAre("<begin>ab"));
  EXPECT_THAT(prompts(R"(["ab","c"])"), ElementsAre("<begin>ab", "<begin>c"));
  EXPECT_THAT(prompts("[97,98]"), ElementsAre("ab"));  // ids are taken as they are
  EXPECT_THAT(prompts("[[97],[98,99]]"), ElementsAre("a", "bc"));
  EXPECT_EQ(Complete(R"("prompt":"a")")->requests.front().sampling.max_tokens, 16);
  EXPECT_EQ(Complete(R"("prompt":"a","max_tokens":null)")->requests.front().sampling.max_tokens,
            16);
}

TEST_F(OpenAiApi, RefusesBadPrompts) {
  for (const char* prompt : {"null", "[]", "{}", "1", "[[]]", R"(["a",1])", "[1,[2]]", R"([1,"a"])",
                             "[258]", "[-1]", "[1.5]", "[[1],\"a\"]", "[true]"}) {
    const auto request = Complete(std::string("\"prompt\":") + prompt);
    ASSERT_FALSE(request) << prompt;
    EXPECT_EQ(request.error().status, 400);
    EXPECT_EQ(request.error().param, "prompt") << prompt;
  }
  EXPECT_EQ(Complete(R"("prompt":"a","suffix":"b")").error().param, "suffix");
  EXPECT_EQ(Complete(R"("prompt":"a","max_tokens":0)").error().param, "max_tokens");
  EXPECT_EQ(Complete(R"("prompt":"a","logprobs":true)").error().param, "logprobs");
}

TEST_F(OpenAiApi, SaysHowLongIsTooLong) {
  const auto request = Complete(fmt::format("\"prompt\":\"{}\"", std::string(64, 'a')));
  ASSERT_FALSE(request);
  EXPECT_EQ(request.error().message,
            "Input length (65) exceeds model's maximum context length (64).");
  const auto cut = Complete(fmt::format(
      R"("prompt":"{}z","max_tokens":4,"truncate_prompt_tokens":-1)", std::string(100, 'a')));
  ASSERT_TRUE(cut) << cut.error().message;
  EXPECT_EQ(cut->requests.front().prompt.size(), 60U);
  EXPECT_EQ(cut->requests.front().prompt.back(), TokenId{'z'});
  // Refused by its size alone: it is not tokenized first.
  EXPECT_FALSE(Complete(fmt::format("\"prompt\":\"{}\"", std::string(200'000, 'a'))));
}

TEST_F(OpenAiApi, ScoresAPromptWithoutGenerating) {
  const auto request = Complete(R"("prompt":[97,98],"echo":true,"max_tokens":0,"logprobs":2)");
  ASSERT_TRUE(request) << request.error().message;
  EXPECT_EQ(request->requests.front().sampling.max_tokens, 0);
  EXPECT_EQ(request->requests.front().sampling.num_prompt_logprobs, 2);
  EXPECT_EQ(request->echo_texts.front(), "ab");
}

// What lm-eval sends, and how it reads the answer.
TEST_F(OpenAiApi, GivesLogLikelihoodsAsLmEvalReadsThem) {
  const auto request = Complete(
      R"("model":"m","prompt":[[97,98,99]],"temperature":0,"max_tokens":1,"logprobs":1,"seed":1234,
         "echo":true)");
  ASSERT_TRUE(request) << request.error().message;
  std::vector<PromptState> prompts(1);
  prompts[0].choices.resize(1);
  OutputEvent event;
  for (const char c : {'a', 'b', 'c'}) {
    event.prompt_logprobs.push_back(FakeScore(static_cast<TokenId>(c), 1));
  }
  event.tokens = {testing::kEnd};
  event.logprobs = {FakeScore(testing::kEnd, 1)};
  event.num_output_tokens = 1;
  event.finish = FinishReason::kStop;
  Apply(event, *request, prompts[0]);
  const json::Value response = CompletedResponse(*request, prompts, text_);
  const json::Value& choice = response.Find("choices")->AsArray()->front();
  EXPECT_EQ(*choice.Find("text")->AsString(), "abc");
  const json::Value& logprobs = *choice.Find("logprobs");
  const json::Array& values = *logprobs.Find("token_logprobs")->AsArray();
  const json::Array& tops = *logprobs.Find("top_logprobs")->AsArray();
  ASSERT_EQ(values.size(), 4U);  // the prompt and the end token
  ASSERT_EQ(tops.size(), 4U);
  EXPECT_TRUE(values[0].IsNull());
  EXPECT_TRUE(tops[0].IsNull());
  // Greedy is told by float equality: both are printed from the same number.
  EXPECT_EQ(json::Dump(values[1]), json::Dump(*tops[1].Find("b")));
  EXPECT_EQ(tops[1].AsObject()->size(), 2U);  // the best one, and the token itself
  EXPECT_EQ(json::Dump(*logprobs.Find("text_offset")), "[0,1,2,3]");
  EXPECT_EQ(json::Dump(*logprobs.Find("tokens")), R"(["a","b","c","<end>"])");
}

TEST_F(OpenAiApi, WritesChatLogprobsWithTrueBytes) {
  auto request = Chat(R"(,"logprobs":true,"top_logprobs":1)");
  ASSERT_TRUE(request);
  TokenLogprob score{.token = TokenId{0xF0},
                     .logprob = -std::numeric_limits<float>::infinity(),
                     .rank = 9,
                     .top = {{TokenId{'x'}, -0.5F}}};
  EXPECT_EQ(json::Dump(ChatLogprobs(std::span(&score, 1), *request, text_)),
            "{\"content\":[{\"token\":\"\xEF\xBF\xBD\",\"logprob\":-9999.0,\"bytes\":[240],"
            "\"top_logprobs\":[{\"token\":\"x\",\"logprob\":-0.5,\"bytes\":[120]}]}],\"refusal\":"
            "null}");
}

TEST_F(OpenAiApi, KeepsTheLikelierOfTwoTokensThatLookAlike) {
  const auto request = Complete(R"("prompt":"a","logprobs":2)");
  TokenLogprob score{.token = TokenId{0xF1}, .logprob = -2.0F, .rank = 2, .top = {}};
  score.top = {{TokenId{0xF0}, -1.0F}};  // both are U+FFFD as text
  std::size_t offset = 0;
  const json::Value logprobs =
      CompletionLogprobs({}, {}, std::span(&score, 1), *request, text_, offset);
  EXPECT_EQ(json::Dump(*logprobs.Find("top_logprobs")), "[{\"\xEF\xBF\xBD\":-1.0}]");
  EXPECT_EQ(offset, 1U);  // characters, not bytes
}

TEST_F(OpenAiApi, BoundsWhatABodyMayHold) {
  std::string deep = R"({"x":)";
  for (int i = 0; i < 70; ++i) {
    deep += '[';
  }
  EXPECT_FALSE(ParseChatCompletion(deep, context_));
  EXPECT_FALSE(ParseChatCompletion("[]", context_));
  EXPECT_FALSE(ParseChatCompletion("", context_));
  EXPECT_FALSE(ParseChatCompletion("{\"messages\":\"\xFF\"}", context_));
  EXPECT_THAT(ParseChatCompletion(R"({"n":1,"n":2})", context_).error().message, HasSubstr("JSON"));
}

TEST_F(OpenAiApi, TokenizesMessagesToo) {
  const auto answer = Tokenize(
      R"({"messages":[{"role":"user","content":"a"}],"add_generation_prompt":false,
          "return_token_strs":true})",
      context_);
  ASSERT_TRUE(answer) << answer.error().message;
  EXPECT_EQ(answer->Find("count")->AsInt(), 7);
  EXPECT_EQ(*answer->Find("token_strs")->AsArray()->front().AsString(), "u");
  EXPECT_EQ(Tokenize("{}", context_).error().param, "prompt");
  EXPECT_EQ(Detokenize(R"({"tokens":[258]})", context_).error().param, "tokens");
}

}  // namespace
}  // namespace nibble
