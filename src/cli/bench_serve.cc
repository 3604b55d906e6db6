// `degu bench serve`: what clients of a server live through under load.
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>

#include "cli/bench_model.h"
#include "cli/serve_bench.h"
#include "io/atomic_file.h"

namespace degu {
namespace {

using Json = nlohmann::ordered_json;

struct ServeArguments {
  std::string url;
  std::string lengths;
  RequestSize size{.prompt_tokens = 128, .max_tokens = 64};
  double slo_ttft_ms = 0;
  double slo_itl_ms = 0;
  std::string api_key_env = "OPENAI_API_KEY";
  std::string out;
  bool json = false;
  LoadOptions load;
};

ExitCode bench_serve(ServeArguments a) {
  const HttpAddress address = parse_http_address(a.url);
  a.load.sizes =
      a.lengths.empty() ? std::vector<RequestSize>{a.size} : read_request_sizes(a.lengths);
  a.load.slo_ttft = 1e-3 * a.slo_ttft_ms;
  a.load.slo_itl = 1e-3 * a.slo_itl_ms;
  if (const char* key = std::getenv(a.api_key_env.c_str())) a.load.http.api_key = key;
  const LoadReport report = run_load(address, a.load);
  const std::string json =
      to_json(report, a.load).dump(2, ' ', false, Json::error_handler_t::replace) + "\n";
  if (!a.out.empty()) write_file_atomic(a.out, json);
  if (a.json) {
    std::fputs(json.c_str(), stdout);
  } else {
    print_load(report, a.load);
  }
  for (const RequestOutcome& request : report.requests) {
    if (request.complete()) return ExitCode::kDone;
  }
  throw IoError("{}: no request was answered; the first failed with: {}", a.url,
                report.requests.front().error);
}

}  // namespace

Action attach_bench_serve(CommandLine& line) {
  auto a = std::make_shared<ServeArguments>();
  line.option("url", a->url, "http://HOST:PORT of the server, without /v1").required();
  line.option("--requests", a->load.requests, "how many").within(1, 100000);
  line.option("--rate", a->load.rate, "mean arrivals per second; they are Poisson").positive();
  line.option("--lengths", a->lengths, "CSV with lines of prompt_tokens,max_tokens, used in turn");
  line.option("--prompt-tokens", a->size.prompt_tokens, "without --lengths").positive();
  line.option("--max-tokens", a->size.max_tokens, "without --lengths").positive();
  line.option("--slo-ttft", a->slo_ttft_ms, "ms to the first text of a good answer; 0: any")
      .non_negative();
  line.option("--slo-itl", a->slo_itl_ms, "mean ms between the tokens of a good answer; 0: any")
      .non_negative();
  line.option("--seed", a->load.seed, "of arrivals and prompts");
  line.option("--model", a->load.model, "default: the first of /v1/models");
  line.option("--vocab", a->load.vocab,
              "prompts of random token ids below this; 0: of words, about a token each")
      .non_negative();
  line.option("--temperature", a->load.temperature, "of sampling").non_negative();
  line.flag("--ignore-eos", a->load.ignore_eos,
            "ask for answers of full length (degu and vLLM know it)");
  line.option("--timeout", a->load.http.silence_seconds, "longest silence in seconds").positive();
  line.option("--api-key-env", a->api_key_env, "environment variable with the API key");
  line.option("--out", a->out, "write the result to this JSON file");
  line.flag("--json", a->json, "one JSON object on standard output");
  return [a] { return bench_serve(*a); };
}

}  // namespace degu
