-- What the operations are asked about: two teams, three users with keys, and a few calls.
INSERT INTO public."LiteLLM_TeamTable" (team_id, team_alias, spend) VALUES ('team', 'Team', 1), ('other', NULL, 0);
INSERT INTO public."LiteLLM_UserTable" (user_id, user_role, user_email, spend, teams)
VALUES ('u', 'internal_user', 'u@example.com', 0.5, '{team}'), ('v', 'proxy_admin_viewer', NULL, 0, '{}'),
       ('w', NULL, NULL, 0.25, '{team,other}');
INSERT INTO public."LiteLLM_VerificationToken" (token, key_name, key_alias, user_id, team_id, spend)
VALUES (repeat('a', 64), 'sk-...aaaa', 'first', 'u', 'team', 0.5), (repeat('b', 64), 'sk-...bbbb', NULL, 'w', NULL, 0.25);
INSERT INTO public."LiteLLM_SpendLogs" (request_id, call_type, api_key, spend, total_tokens, prompt_tokens,
                                        completion_tokens, "startTime", "endTime", model, "user", team_id, end_user,
                                        request_tags, metadata, messages, session_id)
SELECT 'call-' || n, 'acompletion', repeat(CASE n % 2 WHEN 0 THEN 'a' ELSE 'b' END, 64), n / 128.0, 10 * n, 6 * n, 4 * n,
       timestamp '2026-02-01 10:00' + n * interval '7 hours', timestamp '2026-02-01 10:00:01.5' + n * interval '7 hours',
       CASE n % 3 WHEN 0 THEN 'gpt-4o' ELSE 'claude-sonnet-4' END, CASE n % 2 WHEN 0 THEN 'u' ELSE 'w' END,
       CASE n % 2 WHEN 0 THEN 'team' END, CASE n % 5 WHEN 0 THEN 'customer' END,
       CASE n % 4 WHEN 0 THEN '["prod", "nightly"]'::jsonb END, CASE n % 3 WHEN 0 THEN '{"k": 1}'::jsonb END,
       CASE n % 4 WHEN 0 THEN '[{"role": "user", "content": "hi"}]'::jsonb END, CASE n % 6 WHEN 0 THEN 'session' END
FROM generate_series(1, 60) AS n;
INSERT INTO public."LiteLLM_DailyUserSpend" (id, user_id, date, api_key, model, model_group, custom_llm_provider, spend,
                                             prompt_tokens, completion_tokens, api_requests, successful_requests, updated_at)
SELECT n::text, CASE n % 2 WHEN 0 THEN 'u' ELSE 'w' END, (date '2026-02-01' + n % 20)::text,
       repeat(CASE n % 2 WHEN 0 THEN 'a' ELSE 'b' END, 64), CASE n % 3 WHEN 0 THEN 'gpt-4o' ELSE 'claude-sonnet-4' END,
       NULL, CASE n % 3 WHEN 0 THEN 'openai' END, n / 128.0, 6 * n, 4 * n, 1, 1, now()
FROM generate_series(1, 60) AS n;
