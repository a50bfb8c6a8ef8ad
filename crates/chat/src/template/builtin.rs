//! Templates of our own, for models that come without one; used only where a request or a job asks for it by name.

/// ChatML: `<|im_start|>role\ncontent<|im_end|>\n`, with generation blocks. A base model has to learn its two markers.
pub const CHATML: &str = "{% for message in messages %}\
{{ '<|im_start|>' + message.role + '\n' }}\
{% if message.role == 'assistant' %}\
{% generation %}{{ message.content + '<|im_end|>' }}{% endgeneration %}\
{% else %}\
{{ message.content + '<|im_end|>' }}\
{% endif %}\
{{ '\n' }}\
{% endfor %}\
{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";
