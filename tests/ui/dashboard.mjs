// LiteLLM's dashboard on litespend, in a browser: what its pages show is what the API says, and nothing on them fails.
// Run by `./dev test-ui`; usage: node dashboard.mjs TARGET_DIRECTORY

import { execFileSync, spawn } from 'node:child_process'
import { mkdirSync, mkdtempSync, chmodSync, rmSync } from 'node:fs'
import { join, resolve } from 'node:path'
import { chromium } from 'playwright-core'

const target = resolve(process.argv[2] ?? 'target')
const litespend = join(target, 'debug/litespend')
const screenshots = join(target, 'ui')
const masterKey = 'sk-ui-test-master-key'
mkdirSync(screenshots, { recursive: true })

const home = mkdtempSync('/tmp/litespend-ui-')
chmodSync(home, 0o755)
const data = join(home, 'data')
const environment = { ...process.env, LITELLM_MASTER_KEY: masterKey, RUST_LOG: 'warn' }
delete environment.DATABASE_URL
execFileSync(litespend, ['demo-data', '--data-dir', data, '--calls', '60'], { env: environment })
const server = spawn(litespend, ['serve', '--port', '0', '--data-dir', data], {
  env: environment,
  stdio: ['ignore', 'pipe', 'inherit'],
})

/** The address that the server prints. */
const address = await new Promise((resolve, reject) => {
  let said = ''
  server.stdout.on('data', piece => {
    said += piece
    const found = said.match(/listening on ([^)]+)\)/)
    if (found && said.includes('master key')) resolve(`http://${found[1]}`)
  })
  server.on('exit', code => reject(new Error(`the server ended with ${code}: ${said}`)))
})

const browser = await chromium.launch({
  executablePath: process.env.CHROMIUM ?? '/usr/bin/chromium',
  args: ['--headless', '--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run',
    '--disable-background-networking', '--disable-component-update', '--disable-sync'],
})
const page = await (await browser.newContext({ viewport: { width: 1440, height: 1100 } })).newPage()

/** What went wrong on the pages: failed requests of ours, and errors on the console. */
const troubles = []
page.on('response', response => {
  if (response.url().startsWith(address) && response.status() >= 400) {
    troubles.push(`${response.status()} ${response.request().method()} ${response.url()}`)
  }
})
page.on('requestfailed', request => {
  // A page that is left cancels what it asked for.
  if (request.failure()?.errorText !== 'net::ERR_ABORTED') troubles.push(`${request.failure()?.errorText} ${request.url()}`)
})
page.on('console', message => {
  // What a page that is left had asked for; a request that fails otherwise is counted as such.
  if (message.type() === 'error' && !message.text().includes('TypeError: Failed to fetch')) troubles.push(`console: ${message.text()} ${message.location().url}`)
})
page.on('pageerror', error => troubles.push(`page: ${error.message}`))

const ask = async (path, options = {}) => {
  const answer = await fetch(address + path, { ...options, headers: { Authorization: `Bearer ${masterKey}`, ...options.headers } })
  if (!answer.ok) throw new Error(`${path}: ${answer.status} ${await answer.text()}`)
  return answer.json()
}
const day = days => new Date(Date.now() - days * 86_400_000).toISOString().slice(0, 10)
const shot = name => page.screenshot({ path: join(screenshots, `${name}.png`), fullPage: false })
const expect = (holds, message) => {
  if (!holds) throw new Error(message)
}
const quiet = () => page.waitForLoadState('networkidle')
const go = async path => {
  await page.goto(`${address}/ui/${path}`)
  await quiet()
}

const tests = {
  'a wrong password is refused': async () => {
    await go('login/')
    await page.getByPlaceholder(/username/i).fill('admin')
    await page.getByPlaceholder(/password/i).fill('sk-wrong-password')
    await page.getByRole('button', { name: /^(login|sign in)$/i }).click()
    await page.getByText(/invalid credentials/i).first().waitFor()
    await shot('wrong-password')
    // This refusal is what was asked for.
    const expected = troubles.splice(0)
    expect(expected.some(line => line.startsWith('401 POST')), `no 401: ${expected}`)
    expect(expected.every(line => line.includes('/v2/login')), `more than the login failed: ${expected}`)
  },
  'the master key logs in': async () => {
    await page.getByPlaceholder(/username/i).fill('admin')
    await page.getByPlaceholder(/password/i).fill(masterKey)
    await page.getByRole('button', { name: /^(login|sign in)$/i }).click()
    await page.waitForURL(/\/ui\/?(?!login)/)
    await page.getByText('Virtual Keys').first().waitFor()
    await quiet()
    await shot('front')
  },
  'Usage shows the sums of the API, with charts': async () => {
    await go('usage/')
    await page.getByText('Total Requests').filter({ visible: true }).first().waitFor()
    await page.waitForTimeout(1500)
    await shot('usage')
    const days = await ask(`/user/daily/activity?start_date=${day(7)}&end_date=${day(0)}&page_size=1000`)
    const spend = days.results.reduce((sum, result) => sum + result.metrics.spend, 0)
    const requests = days.results.reduce((sum, result) => sum + result.metrics.api_requests, 0)
    expect(requests > 100 && spend > 0, `no usage to be shown: ${requests}`)
    const text = (await page.locator('body').innerText()).replaceAll(',', '')
    expect(text.includes(`$${spend.toFixed(2)}`), `$${spend.toFixed(2)} is not on the page:\n${text.slice(0, 3000)}`)
    expect(text.includes(String(requests)), `${requests} requests are not on the page:\n${text.slice(0, 3000)}`)
    const drawn = await page.locator('svg.recharts-surface path, svg.recharts-surface rect').count()
    expect(drawn > 5, `${drawn} shapes drawn`)
  },
  'Logs lists calls, filters by key and opens one': async () => {
    await go('logs/')
    await page.locator('table tbody tr').nth(3).waitFor()
    await shot('logs')
    const keys = (await ask('/key/list?size=100&return_full_object=true')).keys
    const row = (await ask(`/spend/logs/ui?start_date=${day(1)}%2000:00:00&end_date=${day(-1)}%2000:00:00&page=1&page_size=50`)).data[0]
    const key = keys.find(key => key.token === row.api_key)
    expect(key, 'the newest call has a key')
    await page.goto(`${address}/ui/logs/?key_hash=${key.token}`)
    await quiet()
    await page.locator('table tbody tr').first().click()
    await page.waitForTimeout(1500)
    await shot('logs-row')
    const text = await page.locator('body').innerText()
    expect(/request id|metadata/i.test(text), `no row was opened:\n${text.slice(0, 2000)}`)
  },
  'Virtual Keys lists the keys': async () => {
    await go('api-keys/')
    const { keys } = await ask('/key/list?size=100&return_full_object=true')
    await page.getByText(keys[0].key_alias).first().waitFor()
    await shot('keys')
    expect(keys.length > 3 && keys.every(key => key.team_id !== 'litellm-dashboard'), 'keys of sessions are not listed')
  },
  'Teams lists the teams': async () => {
    await go('teams/')
    const { teams } = await ask('/v2/team/list?page=1&page_size=50')
    for (const team of teams) await page.getByText(team.team_alias).first().waitFor()
    await shot('teams')
  },
  'Security Settings adds and deletes an address': async () => {
    await go('admin-panel/')
    await shot('admin-panel')
    await page.getByText(/security settings/i).first().click()
    await page.getByRole('button', { name: /allowed ips/i }).click()
    await page.waitForTimeout(500)
    await shot('allowed-addresses')
    await page.getByRole('button', { name: /add ip/i }).click()
    // The list must go on to admit this test.
    await page.getByPlaceholder(/ip address/i).fill('127.0.0.1')
    await page.getByRole('button', { name: /^add ip address$/i }).last().click()
    await page.getByRole('cell', { name: '127.0.0.1' }).waitFor()
    await shot('allowed-address-added')
    expect((await ask('/get/allowed_ips')).data.includes('127.0.0.1'), 'the address is not stored')
    await page.getByRole('button', { name: /delete/i }).first().click()
    await page.waitForTimeout(300)
    await page.getByRole('button', { name: /^(yes|delete)$/i }).last().click()
    await page.waitForTimeout(1000)
    await shot('allowed-address-deleted')
    expect(!(await ask('/get/allowed_ips')).data.includes('127.0.0.1'), 'the address is still stored')
  },
}

let failed = 0
for (const [name, test] of Object.entries(tests)) {
  troubles.length = 0
  try {
    await test()
    expect(troubles.length === 0, `troubles:\n  ${troubles.join('\n  ')}`)
    console.log(`ok    ${name}`)
  } catch (error) {
    failed += 1
    await shot(`failed-${failed}`)
    console.log(`FAIL  ${name}\n${error.message}\n${troubles.join('\n')}`)
  }
}
console.log(`${Object.keys(tests).length - failed} of ${Object.keys(tests).length} passed; screenshots in ${screenshots}`)
await browser.close()
server.removeAllListeners('exit')
server.kill('SIGTERM')
await new Promise(done => server.once('exit', done))
rmSync(home, { recursive: true, force: true })
process.exit(failed ? 1 : 0)
