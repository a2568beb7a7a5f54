"""python3 -m recipe COMMAND, run in the folder above (README.md).

  data    the evaluation set and the tokenizer
  train   the checkpoint, from data's files; then its score
  score   the score of a checkpoint, as a server computes it
  all     data, train
  check   that the evaluation files are the generator's, and that the training
          stream holds none of their questions
"""

import argparse
import pathlib

MODEL = pathlib.Path("invar-gsm-20m")
EVALUATION = pathlib.Path("evaluation")


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python3 -m recipe", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command",
                        choices=("check", "data", "train", "score", "all"))
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--out", type=pathlib.Path, default=MODEL,
                        help="where train writes the checkpoint")
    parser.add_argument("--steps", type=int, default=9000)
    parser.add_argument("--seconds", type=float, default=1e9,
                        help="train no longer than this")
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--workers", type=int, default=13)
    parser.add_argument("--eager", action="store_true",
                        help="without torch.compile")
    arguments = parser.parse_args()

    if arguments.command == "check":
        from . import problems
        problems.check(EVALUATION, arguments.steps, arguments.batch)
    if arguments.command in ("data", "all"):
        from . import problems, tokenizer
        problems.write_evaluation_files(EVALUATION)
        tokenizer.train(MODEL)
    if arguments.command in ("train", "all"):
        from . import export, tokenizer, train
        plan = train.Plan(steps=arguments.steps, seconds=arguments.seconds,
                          batch=arguments.batch, workers=arguments.workers,
                          compiled=not arguments.eager)
        model = train.train(MODEL, plan, arguments.device)
        ids = tokenizer.load(MODEL)
        export.write(model, arguments.out,
                     ids.token_to_id(tokenizer.BEGIN),
                     ids.token_to_id(tokenizer.END))
        if arguments.out != MODEL:
            for file in MODEL.glob("*token*.json"):
                (arguments.out / file.name).write_bytes(file.read_bytes())
    if arguments.command in ("score", "train", "all"):
        from . import train
        train.report(arguments.out, EVALUATION, arguments.device)


if __name__ == "__main__":
    main()
