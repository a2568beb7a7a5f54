#include <iterator>
#include <string>

#include "absl/strings/ascii.h"
#include "absl/strings/str_join.h"
#include "client/cli/command.h"
#include "client/cli/request_flags.h"

namespace invar {
namespace {

class ChatCommand : public Command {
 public:
  std::string Name() const override { return "chat"; }
  std::string Summary() const override {
    return "Talk to the model, message by message.";
  }
  std::string Usage() const override { return "chat [MESSAGE] [flags]"; }
  std::string Description() const override {
    return "On a terminal: a conversation that the model remembers. /reset "
           "forgets it, /quit\nor Ctrl-D ends it. With a MESSAGE, or with "
           "standard input from elsewhere: one\nmessage, one answer.\n";
  }
  std::string Examples() const override {
    return "  invar chat\n"
           "  invar chat --system \"Answer in one word.\" --temperature 0.7\n"
           "  invar chat How many eggs are 3 boxes of 12?\n"
           "  cat question.txt | invar chat\n";
  }

  void AddFlags(FlagSet& flags) override {
    flags.Section("The conversation");
    flags.Add("system", "TEXT", "A system message before the first.", &system_);
    request_flags_.AddTo(flags);
  }

  int Run(const GlobalFlags& globals,
          const std::vector<std::string>& positional,
          Terminal& terminal) override {
    auto client = Client::Connect(globals.address);
    if (!client.ok()) return ReportFailure(terminal, client.status());
    Reset();
    if (!positional.empty()) {
      return Say(**client, absl::StrJoin(positional, " "), terminal);
    }
    if (!terminal.in_is_terminal) {
      return Say(**client, {std::istreambuf_iterator<char>(terminal.in), {}},
                 terminal);
    }
    return Converse(**client, terminal);
  }

 private:
  void Reset() {
    chat_.Clear();
    if (!system_.empty()) AddMessage("system", system_);
  }

  void AddMessage(const std::string& role, const std::string& content) {
    v1::ChatMessage* message = chat_.add_messages();
    message->set_role(role);
    message->set_content(content);
  }

  int Converse(Client& client, Terminal& terminal) {
    terminal.err << "/reset forgets the conversation, /quit or Ctrl-D ends "
                    "it.\n";
    std::string line;
    while (terminal.err << "> " << std::flush &&
           std::getline(terminal.in, line)) {
      const absl::string_view words = absl::StripAsciiWhitespace(line);
      if (words.empty()) continue;
      if (words == "/quit") return kExitDone;
      if (words == "/reset") {
        Reset();
        continue;
      }
      if (words[0] == '/') {
        terminal.err << "There are /reset and /quit.\n";
        continue;
      }
      // An answer that failed leaves the conversation as it was.
      const v1::Chat before = chat_;
      const int code = Say(client, line, terminal);
      if (code != kExitDone) chat_ = before;
      if (code == kExitNoServer) return code;
    }
    terminal.err << "\n";
    return kExitDone;
  }

  // Sends a message, prints the answer and remembers both.
  int Say(Client& client, const std::string& message, Terminal& terminal) {
    AddMessage("user", message);
    v1::GenerateRequest request;
    request_flags_.Fill(request);
    *request.mutable_chat() = chat_;
    std::string answer;
    const grpc::Status status =
        client.Generate(request, {.timeout = request_flags_.deadline()},
                        [&](const v1::GenerateResponse& event) {
                          answer += event.delta().text();
                          terminal.out << event.delta().text() << std::flush;
                          return terminal.out.good();
                        });
    if (!answer.empty()) terminal.out << std::endl;
    if (!status.ok()) return ReportFailure(terminal, "", status);
    AddMessage("assistant", answer);
    return kExitDone;
  }

  std::string system_;
  RequestFlags request_flags_;
  v1::Chat chat_;
};

}  // namespace

std::unique_ptr<Command> MakeChatCommand() {
  return std::make_unique<ChatCommand>();
}

}  // namespace invar
