-- A log of our own is partitioned by month from the start. One that has rows stays as it is: `litespend log partition`.
SELECT litespend.partition_empty_log(to_regclass('"LiteLLM_SpendLogs"'));
