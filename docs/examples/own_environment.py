"""A tool and an environment of one's own; docs/environments.md."""

from environments import Conversation, Environment, Reply


def convert(amount: float, unit: str) -> str:
    """Convert an amount to metres.

    Args:
        amount: the number.
        unit: its unit, such as "mile".
    """
    metres = {"mile": 1609.344, "foot": 0.3048, "inch": 0.0254}
    return f"{amount * metres[unit]:g} m"


class Tutor(Environment):
    """Says that an answer is wrong, twice."""

    max_turns = 3
    max_turn_tokens = 200

    def reply(self, conversation: Conversation) -> Reply:
        right = str(conversation.row["answer"]) in conversation.turns[-1].text
        if right or len(conversation.turns) == self.max_turns:
            return Reply(reward=float(right))
        return Reply(messages=[{"role": "user", "content": "That is not right. Try again."}], reward=0.0)
