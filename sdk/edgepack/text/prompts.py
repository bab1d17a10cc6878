"""From a text or a conversation to the ids of a prompt that fits the context, by the policy for those that do not.

``error`` refuses a prompt that is too long. ``truncate_middle`` leaves out what stands between its beginning and its
end: of a conversation the oldest turns after the system prompt, then the middle of the longest message. ``rolling``
does the same, and goes on when the answer fills the context, by forgetting the older half of what it need not keep.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from edgepack.bundle.manifest import Chat, Manifest, ToolUse
from edgepack.errors import BundleError, EdgepackError, PromptTooLongError, UsageError
from edgepack.prefix import common_length
from edgepack.text.chat import ChatTemplate
from edgepack.text.continuing import begun_prompt, check_last
from edgepack.text.history import INSTRUCTING, CallForm, form_of, told
from edgepack.text.messages import checked
from edgepack.text.shortening import fewest, turns
from edgepack.text.thoughts import Thought, marks_of, opened, thought_after
from edgepack.text.tokenizer import Tokenizer

_SHORTENS = "; on_overflow='truncate_middle' or 'rolling' shortens it for you"

OnOverflow = Literal["error", "truncate_middle", "rolling"]
ControlTokens = Literal["text", "parse"]
Messages = Sequence[Mapping[str, object]]

_EMPTY = "Build the bundle again with a template that prints them, or use generate with a plain text."


@dataclass(frozen=True, slots=True)
class Prompt:
    """The ids of a prompt. ``text`` is what they were made of, ``at_start`` says that what follows is a text of its
    own, ``truncated`` counts the tokens that were left out, ``kept`` those that a rolling context never forgets.
    ``begun`` is what of the answer it ends with, ``thought`` how what follows begins, where the model thinks."""

    ids: list[int]
    text: str
    at_start: bool
    truncated: int = 0
    kept: int = 0
    begun: str = ""
    thought: Thought | None = None


class Prompts:
    """Makes prompts for one bundle in one context."""

    def __init__(self, manifest: Manifest, tokenizer: Tokenizer, template: ChatTemplate | None, context: int) -> None:
        self._manifest = manifest
        self._tokenizer = tokenizer
        self._template = template
        self._context = context
        self._forms: dict[ChatTemplate, CallForm] = {}
        self.thinking = None if manifest.chat is None else manifest.chat.thinking

    @property
    def template(self) -> ChatTemplate:
        """The chat template. Raises ``UsageError`` for a bundle without one."""
        check_writes(self._manifest)
        if self._template is None:
            raise UsageError("This bundle has no chat template.", hint="Use generate or stream with a plain text.")
        return self._template

    def of_text(self, text: str, on_overflow: OnOverflow, max_tokens: int) -> Prompt:
        """Return the prompt of a plain text. Raises ``UsageError`` for none, ``PromptTooLongError``."""
        check_writes(self._manifest)
        self._check_bytes(text, on_overflow)
        ids = self._tokenizer.encode(text)
        if not ids:
            raise UsageError("The prompt is empty, and this model has no BOS token to begin with.", hint="Pass a text.")
        kept = int(ids[0] == self._manifest.tokenizer.bos)
        # After a special token a text begins anew, with the space that the tokenizer puts there.
        prompt = Prompt(ids, text, at_start=not self._tokenizer.token_bytes(ids[-1]), kept=kept)
        if on_overflow != "error" and len(ids) > self._context:
            room = self._room(max_tokens)
            head = kept if on_overflow == "rolling" else room // 2
            prompt = replace(prompt, ids=ids[:head] + ids[len(ids) - room + head :], truncated=len(ids) - room)
        return self._checked(prompt)

    def read(self, messages: Messages, template: ChatTemplate, continue_final: bool) -> list[dict[str, Any]]:
        """Return messages checked, and told as a template takes them. Raises ``UsageError`` that names the place."""
        found = checked(messages)
        if template not in self._forms and any(message.get("tool_calls") for message in found):
            self._forms[template] = form_of(template)
        chat = self._facts(template)
        found = told(found, self._forms.get(template, CallForm()), chat.roles if chat else (), self.thinking)
        check_last(found, continue_final)
        return found

    def of_messages(
        self,
        messages: Messages,
        template: ChatTemplate,
        tools: Sequence[Mapping[str, object]] | None,
        variables: Mapping[str, object] | None,
        date: str | None,
        on_overflow: OnOverflow,
        max_tokens: int,
        continues: Callable[[str], list[int] | None] | None = None,
        continue_final: bool = False,
        control_tokens: ControlTokens = "text",
        thinking: bool | None = None,
    ) -> Prompt:
        """Return the prompt of messages that were ``read``; ``template`` is the bundle's, or the one that it has for
        tools.

        ``continues`` may know the ids of a rendered text already; with ``continue_final`` the answer goes on with the
        last message. ``control_tokens`` says what names of special tokens in messages, tools and variables are: "text",
        or by "parse" those tokens. ``thinking`` is told to the template, where it is not None. Raises as
        ``ChatTemplate.render``, and ``UsageError`` for a role or a date that the template cannot take,
        ``PromptTooLongError``.
        """
        self._check_date(date)
        if thinking is not None:
            messages, variables = self._switched(thinking, messages, variables or {})
        marks = marks_of(template.source)

        def written(chosen: Messages, ask: bool) -> str:
            text = template.render(chosen, tools=tools, variables=variables, date=date, add_generation_prompt=ask)
            return text if control_tokens == "text" else text.plain

        def render(chosen: Messages, ask: bool = True) -> Prompt:
            goes_on = continue_final and ask
            text = begun_prompt(written, chosen, marks) if goes_on else written(chosen, ask)
            self._check_bytes(text, on_overflow)
            # A template writes its own BOS, or wants none.
            known = continues(text) if continues else None
            ids = known or self._tokenizer.encode(text, bos=False, special=True)
            plain = str.__str__(text)
            said = str(chosen[-1]["content"]) if goes_on else ""
            thought = None if self.thinking is None else thought_after(plain, said, self.thinking)
            begun = "" if thought == "begun" else said if goes_on else opened(plain, marks)
            return Prompt(ids, plain, at_start=not goes_on, begun=begun, thought=thought)

        prompt = render(messages)
        self._check_roles(messages, template)
        if on_overflow == "error":
            return self._checked(prompt)
        system = next((i for i, message in enumerate(messages) if message["role"] not in INSTRUCTING), len(messages))
        whole = len(prompt.ids)
        if whole > self._context:
            prompt = self._shortened(prompt, list(messages), system, self._room(max_tokens), render)
        if on_overflow == "rolling":
            prompt = replace(prompt, kept=_kept(prompt.ids, messages[:system], render))
        return self._checked(replace(prompt, truncated=whole - len(prompt.ids)))

    def _switched(
        self, thinking: bool, messages: Messages, variables: Mapping[str, object]
    ) -> tuple[Messages, Mapping[str, object]]:
        """Return messages and variables that tell the template whether its model is to think."""
        switch = None if self.thinking is None else self.thinking.switch
        if switch is None:
            raise UsageError("This bundle's chat template has no switch for thinking.", hint="Leave out thinking.")
        value = switch.on if thinking else switch.off
        if switch.variable in variables:
            raise UsageError(
                f"thinking was given beside the variable {switch.variable!r}.", hint="Leave one of them out."
            )
        if switch.variable is not None:
            return messages, {**variables, switch.variable: value}
        first = messages[0]
        if first["role"] != "system":
            return [{"role": "system", "content": value}, *messages], variables
        return [{**first, "content": f"{first['content']}\n{value}"}, *messages[1:]], variables

    def _shortened(
        self,
        prompt: Prompt,
        messages: list[Mapping[str, object]],
        system: int,
        room: int,
        render: Callable[[Messages], Prompt],
    ) -> Prompt:
        """Leave out the oldest turns, then the middle of the longest message, until the prompt has at most ``room``."""
        begins = turns(messages, system)
        if len(prompt.ids) > room and len(begins) > 1:
            tried: dict[int, Prompt] = {}

            def count(left_out: int) -> int:
                tried[left_out] = render(messages[: begins[0]] + messages[begins[left_out] :])
                return len(tried[left_out].ids)

            enough = fewest(messages, begins, len(prompt.ids), room, count)
            prompt = tried[enough]
            del messages[begins[0] : begins[enough]]
        while len(prompt.ids) > room:
            if not self._cut_longest(messages, len(prompt.ids) - room):
                raise self._too_long(len(prompt.ids), "")
            prompt = render(messages)
        return prompt

    def _cut_longest(self, messages: list[Mapping[str, object]], surplus: int) -> bool:
        """Cut so many tokens out of the middle of the longest message; return whether that made it shorter.

        The two ends may be tokenised otherwise where they meet, so that the caller may have to ask again.
        """
        longest = max(range(len(messages)), key=lambda i: len(str(messages[i].get("content") or "")))
        content = str(messages[longest].get("content") or "")
        ids = self._tokenizer.encode(content, bos=False)
        left = len(ids) - surplus
        if left < 2:
            return False
        head, tail = ids[: left // 2], ids[left // 2 + surplus :]
        shorter = self._tokenizer.decode(head) + self._tokenizer.decode(tail)
        messages[longest] = {**messages[longest], "content": shorter}
        return len(shorter) < len(content)

    def _room(self, max_tokens: int) -> int:
        """Tokens that a shortened prompt may have: the answer gets what it asks for, at most half of the context."""
        return self._context - min(max_tokens, self._context // 2)

    def _check_date(self, date: str | None) -> None:
        prints = None if self._manifest.chat is None else self._manifest.chat.date
        if date is None and prints is not None and prints.policy == "passed":
            raise UsageError("The chat template prints the day.", hint="Pass it: date='YYYY-MM-DD'.")
        if date is not None and prints is None:
            raise UsageError("This bundle's chat template prints no day.", hint="Leave out date.")

    def _facts(self, template: ChatTemplate) -> Chat | ToolUse | None:
        """Return what the bundle says of a template: its own, or the one that it has for tools."""
        chat = self._manifest.chat
        return chat and (chat.tool_use or chat if template is not self._template else chat)

    def _check_bytes(self, text: str, on_overflow: OnOverflow) -> None:
        """Refuse, before anything is tokenised, a text whose bytes alone need more tokens than the context has."""
        if on_overflow == "error" and (least := self._tokenizer.at_least(text)) > self._context:
            raise self._too_long(least, _SHORTENS, "at least ")

    def _check_roles(self, messages: Messages, template: ChatTemplate) -> None:
        """Refuse what the template leaves out without a word, as most do with roles that they do not know."""
        facts = self._facts(template)
        if not facts or not facts.roles:
            return
        for index, message in enumerate(messages):
            role, place = message["role"], f"messages[{index}].role"
            if role not in facts.roles:
                raise UsageError(
                    f"{place} is {role!r}, which the bundle's chat template does not print.",
                    hint=f"It knows: {', '.join(facts.roles)}.",
                )
            if index and role in facts.leading:
                raise UsageError(
                    f"{place} is {role!r}, which the bundle's chat template prints of the first message alone.",
                    hint="Put it first; two of them in one message.",
                )

    def _checked(self, prompt: Prompt) -> Prompt:
        if not prompt.ids:
            raise BundleError("The bundle's chat template prints nothing for these messages.", hint=_EMPTY)
        last = max(prompt.ids)
        if last >= self._manifest.decoder.n_vocab:  # a tokenizer may know tokens that its model never learnt
            raise UsageError(f"The prompt has the token {self._tokenizer.token(last)!r}, which this model lacks.")
        if len(prompt.ids) > self._context:
            raise self._too_long(len(prompt.ids), _SHORTENS)
        return prompt

    def _too_long(self, count: int, otherwise: str, about: str = "") -> PromptTooLongError:
        most = self._manifest.context.profile
        larger = f"load with a larger context, of up to {most}" if about else f"load with context={count} or more"
        return PromptTooLongError(
            f"The prompt has {about}{count} tokens, the context {self._context}.",
            hint=f"Shorten it, or {larger if count <= most else f'this bundle is made for {most} tokens'}{otherwise}.",
        )


def check_writes(manifest: Manifest) -> None:
    """Raise ``UsageError`` for a model that has no head, and writes nothing."""
    if manifest.embedding is not None:
        raise UsageError(
            "This model embeds texts, and writes none.", hint="Call embed, or load a bundle of a model that writes."
        )


def check_policy(value: object) -> OnOverflow:
    """Return the policy. Raises ``UsageError`` for another word."""
    if value is None:
        return "error"
    for known in get_args(OnOverflow):
        if value == known:
            policy: OnOverflow = known
            return policy
    raise UsageError(f"on_overflow is {value!r}.", hint=f"Choose one of: {', '.join(get_args(OnOverflow))}.")


def _kept(ids: Sequence[int], system: Messages, render: Callable[[Messages, bool], Prompt]) -> int:
    """Return how many ids of a prompt are its system prompt: those that the system's messages alone begin with."""
    if not system:
        return 0
    try:
        alone = render(system, False).ids
    except EdgepackError:  # some templates want a user's message
        return 0
    return common_length(ids, alone)
